// The kernel of the mma family: a block of eight warps computes 128 rows x kTokens, group by group.
// cp.async keeps kStages - 1 groups under way.
//
//                    tokens 0 … kTokens / 2   the rest
//   rows  0 …  31    warp 0                   warp 4        a warp: two row tiles, held as A
//   rows 32 …  63    warp 1                   warp 5        operands for the whole group, and
//   rows 64 …  95    warp 2                   warp 6        8 tokens at a time as B
//   rows 96 … 127    warp 3                   warp 7
//
// The 128 bytes of a token's group are eight chunks of 16; chunk c of token r lies at c ^ (r % 8),
// so that ldmatrix, which reads one chunk of eight tokens, meets every bank once.
#pragma once

#include "flexq_kernels/gpu/async_copy.cuh"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/mma.cuh"
#include "flexq_kernels/gpu/store_tile.cuh"
#include "flexq_kernels/gpu/tile_order.h"

namespace flexq_kernels::gpu {

constexpr int kMmaRows = 128;
constexpr int kMmaThreads = 256;

struct MmaParams {
  Activations x;
  Weight w;
  StoreTarget y;
  FloatType type = FloatType::kFp32;
  int32_t* sums = nullptr;  // [m, n, groups] instead of y
  int groups = 0;
  TileOrder tiles;
};

template <int kTokens, int kStages>
struct MmaShared {
  static constexpr int kCodes = kTokens * kGroupSize;
  static constexpr int kWeight = kMmaRows / kTileRows * kTileBytes;
  static constexpr int kWeightScales = kMmaRows * 2;
  static constexpr int kScales = kTokens * 4;
  static constexpr int kWeightAt = kCodes;
  static constexpr int kWeightScalesAt = kWeightAt + kWeight;
  static constexpr int kScalesAt = kWeightScalesAt + kWeightScales;
  static constexpr int kStage = kScalesAt + kScales;
  static constexpr int kBytes = kStages * kStage;
  static_assert(kBytes >= 2 * kStoreBytes, "the result's blocks take the ring's place");
};

// ---- Copies ----

// What a thread copies of each group: of row tile `warp` three times 16 bytes; chunk thread % 8 of
// tokens thread / 8, that + 32, …; the scale of one token, or of eight rows.
template <int kTokens, int kStages>
struct MmaCopies {
  using Shared = MmaShared<kTokens, kStages>;
  static_assert(kMmaThreads / 32 == kMmaRows / kTileRows && kTokens + 16 <= kMmaThreads);

  const uint8_t* weight;
  const int8_t* codes;
  int64_t token_pitch;
  int tokens_left;  // from the thread's first token on; so many exist
  bool row_tile_exists;

  __device__ __forceinline__ MmaCopies(const MmaParams& p, int rows, int tokens) {
    const int thread = static_cast<int>(threadIdx.x), row_tile = rows / kTileRows + thread / 32;
    row_tile_exists = row_tile * kTileRows < p.y.n;
    weight = p.w.codes + thread % 32 * 16;
    if (row_tile_exists) weight += static_cast<int64_t>(row_tile) * p.groups * kTileBytes;
    token_pitch = static_cast<int64_t>(p.groups) * kGroupSize;
    tokens_left = p.y.m - tokens - thread / 8;
    codes = p.x.codes + thread % 8 * 16;
    if (tokens_left > 0) codes += (tokens + thread / 8) * token_pitch;
  }

  __device__ __forceinline__ void copy(const MmaParams& p, unsigned char* stage, int rows,
                                       int tokens, int group) const {
    const int thread = static_cast<int>(threadIdx.x);
    unsigned char* const to_weight =
        stage + Shared::kWeightAt + thread / 32 * kTileBytes + thread % 32 * 16;
    const uint8_t* const from_weight = weight + static_cast<int64_t>(group) * kTileBytes;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      copy_async_or_zero<16>(shared_address(to_weight + 512 * i), from_weight + 512 * i,
                             row_tile_exists);
    }
    unsigned char* const to_codes =
        stage + thread / 8 * kGroupSize + (thread % 8 ^ thread / 8 % 8) * 16;
    const int8_t* from_codes = codes + static_cast<int64_t>(group) * kGroupSize;
#pragma unroll
    for (int i = 0; i < kTokens / 32; ++i) {
      copy_async_or_zero<16>(shared_address(to_codes + 32 * i * kGroupSize), from_codes,
                             32 * i < tokens_left);
      if (32 * (i + 1) < tokens_left) from_codes += 32 * token_pitch;
    }
    if (thread < kTokens) {
      const bool there = tokens + thread < p.y.m;
      copy_async_or_zero<4>(shared_address(stage + Shared::kScalesAt + 4 * thread),
                            p.x.scales + group * p.x.scale_stride + (there ? tokens + thread : 0),
                            there);
    } else if (thread < kTokens + 16) {
      const int i = thread - kTokens, row_tile = rows / kTileRows + i / 2;
      const bool there = row_tile * kTileRows < p.y.n;
      const int64_t from = static_cast<int64_t>(there ? row_tile : 0) * p.groups + group;
      copy_async_or_zero<16>(shared_address(stage + Shared::kWeightScalesAt + 16 * i),
                             p.w.scales + from * kTileRows + i % 2 * 8, there);
    }
  }
};

// ---- Products ----

// Of 8 tokens all 128 k: word i is the 32-bit B operand of k 16i + 4t … of token g.
__device__ __forceinline__ void load_tokens(uint32_t (&b)[8], const unsigned char* codes,
                                            int lane) {
  const int token = lane % 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int chunk = 4 * half + lane / 8;
    const auto address = static_cast<uint32_t>(
        __cvta_generic_to_shared(codes + token * kGroupSize + (chunk ^ token) * 16));
    uint32_t words[4];
    load_matrices(words, address);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[4 * half + i] = words[i];
  }
}

// Two row tiles of a group in registers, with the scales of the lane's four rows.
struct MmaRows {
  uint32_t a[2][kStepsPerGroup][4];
  float scales[2][2];

  __device__ __forceinline__ void load(const unsigned char* weight, const unsigned char* row_scales,
                                       int row_tile, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t words[12];
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const uint4 chunk = *reinterpret_cast<const uint4*>(weight + (row_tile + i) * kTileBytes +
                                                            512 * j + 16 * lane);
        words[4 * j] = chunk.x;
        words[4 * j + 1] = chunk.y;
        words[4 * j + 2] = chunk.z;
        words[4 * j + 3] = chunk.w;
      }
#pragma unroll
      for (int s = 0; s < kStepsPerGroup; ++s) {
        unpack_int6(a[i][s], words[3 * s], words[3 * s + 1], words[3 * s + 2]);
      }
      const auto* of_rows =
          reinterpret_cast<const __half*>(row_scales) + (row_tile + i) * kTileRows + lane / 4;
      scales[i][0] = __half2float(of_rows[0]);
      scales[i][1] = __half2float(of_rows[8]);
    }
  }

  // The sums of a row tile and 8 tokens, from kSumBias.
  __device__ __forceinline__ void multiply(int32_t (&sums)[4], int tile,
                                           const uint32_t (&b)[8]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = kSumBias;
#pragma unroll
    for (int s = 0; s < kStepsPerGroup; ++s) mma_int8(sums, a[tile][s], b[2 * s], b[2 * s + 1]);
  }
};

template <typename T, int kTokens>
__device__ __forceinline__ void store_sums(const MmaParams& p, const float (&y)[2][kTokens / 16][4],
                                           unsigned char* shared, int rows, int tokens) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int row = warp % 4 * 32 + lane / 4, token = warp / 4 * (kTokens / 2) + lane % 4 * 2;
  T* const blocks = reinterpret_cast<T*>(shared);
  constexpr int kBlock = kStoreBytes / static_cast<int>(sizeof(T));
#pragma unroll
  for (int c = 0; c < kTokens / kStoreBlock; ++c) {
    __syncthreads();
    if (token / kStoreBlock == c) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
        for (int i = 0; i < kTokens / 4; ++i) {
          const int r = row + 16 * tile + i % 4 / 2 * 8;
          float value = y[tile][i / 4][i % 4];
          if (p.y.bias != nullptr && rows + r < p.y.n) value += p.y.bias[rows + r];
          blocks[r / kStoreBlock * kBlock +
                 (token % kStoreBlock + i / 4 * 8 + i % 2) * kStorePitch<T> + r % kStoreBlock] =
              rounded<T>(value);
        }
      }
    }
    __syncthreads();
    store_block<T, 128>(blocks + thread / 128 * kBlock, p.y, tokens + c * kStoreBlock,
                        rows + thread / 128 * kStoreBlock, thread % 128);
  }
}

template <int kTokens, int kStages, bool kDump>
__global__ void __launch_bounds__(kMmaThreads, kTokens == 64 ? 2 : 1)
    sm80_w6ax_mma_gemm(const __grid_constant__ MmaParams p) {
  using Shared = MmaShared<kTokens, kStages>;
  extern __shared__ __align__(128) unsigned char mma_shared[];
  const auto tile = p.tiles.at(static_cast<int>(blockIdx.x));
  const int rows = tile.row_block * kMmaRows, tokens = tile.token_tile * kTokens;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int own_tokens = warp / 4 * (kTokens / 2);
  pdl_launch_dependents();
  pdl_wait();
  const MmaCopies<kTokens, kStages> copies(p, rows, tokens);
#pragma unroll 1
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < p.groups) copies.copy(p, mma_shared + s * Shared::kStage, rows, tokens, s);
    commit_copies();
  }
  float y[2][kTokens / 16][4] = {};
  int at = 0, next = kStages - 1;  // stages
#pragma unroll 1
  for (int g = 0; g < p.groups; ++g) {
    wait_copies<kStages - 2>();
    __syncthreads();  // group g has come, and the stage of group g - 1 was read
    if (g + kStages - 1 < p.groups) {
      copies.copy(p, mma_shared + next * Shared::kStage, rows, tokens, g + kStages - 1);
    }
    commit_copies();
    const unsigned char* const stage = mma_shared + at * Shared::kStage;
    at = at + 1 == kStages ? 0 : at + 1;
    next = next + 1 == kStages ? 0 : next + 1;
    MmaRows weights;
    weights.load(stage + Shared::kWeightAt, stage + Shared::kWeightScalesAt, warp % 4 * 2, lane);
    const WeightScale scales[2][2] = {
        {WeightScale(weights.scales[0][0]), WeightScale(weights.scales[0][1])},
        {WeightScale(weights.scales[1][0]), WeightScale(weights.scales[1][1])}};
#pragma unroll
    for (int j = 0; j < kTokens / 16; ++j) {
      const int token = own_tokens + 8 * j;
      uint32_t b[8];
      load_tokens(b, stage + token * kGroupSize, lane);
      const float2 token_scale = *reinterpret_cast<const float2*>(stage + Shared::kScalesAt +
                                                                  4 * (token + 2 * (lane % 4)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int32_t sums[4];
        weights.multiply(sums, i, b);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if constexpr (kDump) {
            const int m = tokens + token + 2 * (lane % 4) + e % 2;
            const int n = rows + (warp % 4 * 2 + i) * kTileRows + lane / 4 + e / 2 * 8;
            if (m < p.y.m && n < p.y.n) {
              p.sums[(static_cast<int64_t>(m) * p.y.n + n) * p.groups + g] = group_sum(sums[e]);
            }
          } else {
            y[i][j][e] = __fmaf_rn(scales[i][e / 2].apply(sums[e]),
                                   e % 2 == 0 ? token_scale.x : token_scale.y, y[i][j][e]);
          }
        }
      }
    }
  }
  wait_copies<0>();
  if constexpr (!kDump) {
    if (p.type == FloatType::kFp32) {
      store_sums<float, kTokens>(p, y, mma_shared, rows, tokens);
    } else if (p.type == FloatType::kFp16) {
      store_sums<__half, kTokens>(p, y, mma_shared, rows, tokens);
    } else {
      store_sums<__nv_bfloat16, kTokens>(p, y, mma_shared, rows, tokens);
    }
  }
}

}  // namespace flexq_kernels::gpu
