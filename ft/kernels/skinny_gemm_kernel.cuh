// The kernel of skinny_gemm.h and its launcher, for the source files that instantiate it.
//
// One block owns `rows` whole rows of w; its warps share k and add up in the order of the warps.
// No sum crosses blocks, so it depends on k and the number of warps alone.
//
// Bytes in flight. 3.05 TB/s over about 0.7 us of latency are 2.1 MB, 16 KB for each of 132
// multiprocessors; 37 to 49 KB were measured to saturate. A lane has 32 bytes in flight per row
// tile and stage, a block of 8 warps 8 KB: 32 KB with 16 rows and 4 stages (two or three blocks per
// multiprocessor: 64 to 96 KB), 64 KB with 32 rows and 4 stages (4096 rows are then 128 blocks, one
// each). A stage is loaded anew as soon as it has been multiplied, so the pipeline drains only at a
// block's end, and then the other blocks of the multiprocessor go on. Blocks that are resident
// together share the bandwidth evenly, so 160 blocks on 132 multiprocessors take little longer than
// their bytes.
//
// Against that the work is small: a warp gets 1 KB of a row tile every 79 clocks of its
// multiprocessor, in which it issues 2 loads of w, 2 mma and 1 load of x per 8 tokens, and about as
// many address instructions; conversion of int8 adds 40 (fp16) or 64 (bf16) of 316 issue slots.
#pragma once

#include "ft/kernels/launch.cuh"
#include "ft/kernels/skinny_gemm.cuh"

namespace flexq_ft::gpu {

constexpr int kSkinnyMaxWarps = 8;
constexpr int kSkinnySumStride = 20;  // 16 rows; 4t tokens apart are 8t banks apart: no conflicts

// Row tiles whose sums are in shared memory at once: as many as leave most of it to L1, where x is.
template <int kRowTiles, int kTokenTiles>
constexpr int kSkinnyTilesAtOnce = kTokenTiles >= 4              ? 1
                                   : kRowTiles < 4 / kTokenTiles ? kRowTiles
                                                                 : 4 / kTokenTiles;

// Adds the warps' sums and stores those of tokens below m and rows below n.
template <typename Sum, int kRowTiles, int kTokenTiles>
__device__ __forceinline__ void reduce_and_store(const SkinnyArgs& args, int first_row,
                                                 const Sum (&sum)[kRowTiles][kTokenTiles][4]) {
  constexpr int kAtOnce = kSkinnyTilesAtOnce<kRowTiles, kTokenTiles>;
  constexpr int kTileSums = kTokenTiles * 8 * kSkinnySumStride;
  constexpr int kWarpSums = kAtOnce * kTileSums;
  extern __shared__ uint4 shared[];
  Sum* sums = reinterpret_cast<Sum*>(shared);
  const int warp = static_cast<int>(threadIdx.x / 32), warps = static_cast<int>(blockDim.x / 32);
  const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
  Sum* y = static_cast<Sum*>(args.y);
#pragma unroll
  for (int first = 0; first < kRowTiles; first += kAtOnce) {
    if (first > 0) __syncthreads();
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
#pragma unroll
      for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[warp * kWarpSums + r * kTileSums + (8 * c + 2 * t + i % 2) * kSkinnySumStride + g +
               8 * (i / 2)] = sum[first + r][c][i];
        }
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < args.m * 16 * kAtOnce;
         i += static_cast<int>(blockDim.x)) {
      const int r = i / 16 % kAtOnce, token = i / (16 * kAtOnce);
      const int row = first_row + 16 * (first + r) + i % 16;
      if (row >= args.n) continue;
      const Sum* part = sums + r * kTileSums + token * kSkinnySumStride + i % 16;
      Sum total = part[0];
      for (int w = 1; w < warps; ++w) total += part[w * kWarpSums];
      y[static_cast<int64_t>(token) * args.n + row] = total;
    }
  }
}

template <SkinnyMath kMath, int kRowTiles, int kTokenTiles, int kStages>
struct SkinnyWarp {
  using Traits = SkinnyTraits<kMath>;
  using Sums = typename Traits::Sum[kRowTiles][kTokenTiles][4];
  static constexpr int kXPieces = Traits::kXPieces;
  // x of up to 32 tokens is loaded ahead like w; of more it would not fit in the registers, and is
  // loaded where it is used, for a few tiles of tokens at a time.
  static constexpr bool kXAhead = kTokenTiles <= 4;
  static constexpr int kXTiles = kXAhead ? kTokenTiles : 4;

  const uint4* w;
  const uint4* x;
  uint64_t policy;
  uint32_t warp, warps;
  int t, m, pieces;
  int w_row[kRowTiles][2];  // start of the lane's rows, in pieces
  int token, x_row;         // first token of the lane and its start

  __device__ __forceinline__ SkinnyWarp(const SkinnyArgs& args, int first_row)
      : w(static_cast<const uint4*>(args.w)),
        x(static_cast<const uint4*>(args.x)),
        policy(stream_once_policy()),
        warp(threadIdx.x / 32),
        warps(blockDim.x / 32),
        t(static_cast<int>(threadIdx.x % 4)),
        m(args.m),
        pieces(args.pieces) {
    const int g = static_cast<int>(threadIdx.x % 32 / 4);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // past the end: the last row again, whose sum is not stored
        w_row[r][h] = min(first_row + 16 * r + 8 * h + g, args.n - 1) * pieces;
      }
    }
    token = g;
    x_row = g * pieces * kXPieces;
  }

  __device__ __forceinline__ int chunk_start(uint32_t i) const {
    return static_cast<int>(skinny_chunk_start(i, warp, warps));
  }

  // Asks for what follows the stages, a line of 128 bytes per lane: 16 rows, two pairs of chunks.
  __device__ __forceinline__ void prefetch_w(const SkinnyArgs& args, int first_row) const {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t a = 0; a < static_cast<uint32_t>(args.ahead); ++a) {
      const int piece = chunk_start((kStages + 1) / 2 * 2 + 4 * a + 2 * (lane / 16));
      if (piece >= pieces) return;
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const int row = min(first_row + 16 * r + static_cast<int>(lane % 16), args.n - 1);
        prefetch_to_l2(w + row * pieces + piece);
      }
    }
  }

  __device__ __forceinline__ void load_w(uint4 (&to)[kRowTiles][2], uint32_t i) const {
    const int piece = chunk_start(i) + t;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        to[r][h] = load_weight(w + w_row[r][h] + piece, piece < pieces, policy);
      }
    }
  }

  // Of kXTiles token tiles from the first.
  __device__ __forceinline__ void load_x(uint4 (&to)[kXTiles], uint32_t i, int p,
                                         int first = 0) const {
    const int piece = chunk_start(i) + t;
#pragma unroll
    for (int c = 0; c < kXTiles; ++c) {
      const int row = x_row + (first + c) * 8 * pieces * kXPieces;
      to[c] = load_activation(x + row + piece * kXPieces + p,
                              piece < pieces && token + 8 * (first + c) < m);
    }
  }

  __device__ __forceinline__ void load_ahead(uint4 (&to)[kXPieces][kXTiles], uint32_t i) const {
    if constexpr (kXAhead) {
#pragma unroll
      for (int p = 0; p < kXPieces; ++p) load_x(to[p], i, p);
    }
  }

  // The i-th chunk, which is in w_in and x_in (which is overwritten if it was not loaded ahead).
  __device__ __forceinline__ void multiply(Sums& sum, const uint4 (&w_in)[kRowTiles][2],
                                           uint4 (&x_in)[kXPieces][kXTiles], uint32_t i) const {
#pragma unroll(kXAhead ? kXPieces : 1)
    for (int p = 0; p < kXPieces; ++p) {
      uint4(&x_piece)[kXTiles] = x_in[kXAhead ? p : 0];
#pragma unroll
      for (int first = 0; first < kTokenTiles; first += kXTiles) {
        if constexpr (!kXAhead) {
          __syncwarp();  // keeps the compiler from loading all of x at once
          load_x(x_piece, i, p, first);
        }
        multiply_chunk<kMath>(sum, w_in, x_piece, p, first);
      }
    }
  }

  __device__ __forceinline__ void run(Sums& sum, const SkinnyArgs& args, int first_row) const {
    uint4 w_in[kStages][kRowTiles][2];
    uint4 x_in[kStages][kXPieces][kXTiles];
#pragma unroll
    for (int u = 0; u < kStages; ++u) load_w(w_in[u], u);
    prefetch_w(args, first_row);
    pdl_wait();
#pragma unroll
    for (int u = 0; u < kStages; ++u) load_ahead(x_in[u], u);
#pragma unroll 1
    for (uint32_t i = 0;; i += kStages) {
#pragma unroll
      for (int u = 0; u < kStages; ++u) {
        // The branch also keeps the compiler from multiplying all stages before it loads the first.
        if (chunk_start(i + u) >= pieces) return;
        multiply(sum, w_in[u], x_in[u], i + u);
        load_w(w_in[u], i + kStages + u);
        load_ahead(x_in[u], i + kStages + u);
      }
    }
  }
};

template <SkinnyMath kMath, int kRowTiles, int kTokenTiles, int kStages>
__global__ void __launch_bounds__(kSkinnyMaxWarps * 32) skinny_gemm(const SkinnyArgs args) {
  pdl_launch_dependents();
  const int first_row = static_cast<int>(blockIdx.x) * kRowTiles * 16;
  typename SkinnyTraits<kMath>::Sum sum[kRowTiles][kTokenTiles][4] = {};
  SkinnyWarp<kMath, kRowTiles, kTokenTiles, kStages>(args, first_row).run(sum, args, first_row);
  reduce_and_store(args, first_row, sum);
}

// True if the config and m are those of the instance, after launching it.
template <SkinnyMath kMath, int kRowTiles, int kTokenTiles, int kStages>
bool launch_skinny_if(const SkinnyArgs& args, const SkinnyConfig& config, Stream stream) {
  const int tiles = args.m <= 8 ? 1 : args.m <= 16 ? 2 : args.m <= 32 ? 4 : 8;
  if (tiles != kTokenTiles || config.rows != 16 * kRowTiles || config.stages != kStages) {
    return false;
  }
  const size_t shared = sizeof(float) * static_cast<size_t>(config.warps) *
                        kSkinnyTilesAtOnce<kRowTiles, kTokenTiles> * kTokenTiles * 8 *
                        kSkinnySumStride;
  launch(skinny_gemm<kMath, kRowTiles, kTokenTiles, kStages>,
         dim3(static_cast<unsigned>((args.n + config.rows - 1) / config.rows)),
         dim3(static_cast<unsigned>(config.warps * 32)), shared, stream, args);
  return true;
}

// All of one type; the shapes are those of skinny_configs().
template <SkinnyMath kMath>
bool launch_skinny_all(const SkinnyArgs& args, const SkinnyConfig& config, Stream stream) {
  return launch_skinny_if<kMath, 1, 1, 4>(args, config, stream) ||
         launch_skinny_if<kMath, 1, 1, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 2, 1, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 2, 1, 4>(args, config, stream) ||
         launch_skinny_if<kMath, 1, 2, 4>(args, config, stream) ||
         launch_skinny_if<kMath, 2, 2, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 2, 2, 4>(args, config, stream) ||
         launch_skinny_if<kMath, 4, 2, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 2, 4, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 4, 4, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 2, 8, 2>(args, config, stream) ||
         launch_skinny_if<kMath, 4, 8, 1>(args, config, stream);
}

}  // namespace flexq_ft::gpu
