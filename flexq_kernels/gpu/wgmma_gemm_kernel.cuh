// The kernel of the wgmma family. One block per multiprocessor stays and takes tile after tile:
//
//   warpgroup 0   one thread copies, group after group and tile after tile, into a ring of stages:
//                 8 packed row tiles, their scales, the codes of the tokens (TMA swizzles them as
//                 wgmma wants B) and their scales. In a cluster of two each block copies half of
//                 the tokens' codes, to both.
//   warpgroup 1   rows  0 …  63 x all tokens of the tile
//   warpgroup 2   rows 64 … 127
//
// A warp unpacks its row tile once per group, into one of two sets of A registers, and multiplies
// 64 tokens (a chunk) at a time into one of two sets of int32 sums. While the tensor core works on
// a chunk, the one in front is turned into floats and added up (here three chunks; the sets change
// their roles from group to group, and tiles follow each other like groups):
//
//   tensor core   | g, chunk 0 | g, chunk 1            | g, chunk 2 | g + 1, chunk 0 | …
//   sums in set   | 0          | 1                     | 0          | 1              |
//   warp                       | promote 0, load g + 1 | promote 1, | give stage g   |
//                                                        unpack       back, promote 2
#pragma once

#include <utility>

#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_copy.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_store.cuh"

namespace flexq_kernels::gpu {

constexpr int kWgmmaThreads = 3 * 128;
constexpr int kWgmmaChunk = 64;  // tokens of one wgmma

// ---- One chunk ----

// `never` is false, and the compiler does not know: to it the sums live on, so that it reads the
// old ones before they are overwritten instead of keeping a third set.
template <int kSet>
__device__ __forceinline__ void multiply_chunk(const uint32_t (&a)[kStepsPerGroup][4],
                                               uint32_t tokens, bool never) {
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    wgmma_int8<kSet>(a[s], swizzled_descriptor(tokens + s * kDescriptorStep), s > 0 || never);
  }
  wgmma_commit();
}

// y += scale of the row * sum / 4 * scale of the token. The sums began at 0, are exact in a float,
// and the product with a quarter of the scale is rounded once, as WeightScale does it.
__device__ __forceinline__ void promote_chunk(float (&y)[32], const float (&sums)[32],
                                              const float (&quarter)[2],
                                              const float2 (&scales)[8]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float product = __fmul_rn(sums[i], quarter[i % 4 / 2]);
    const float2 scale = scales[i / 4];
    y[i] = __fmaf_rn(product, i % 2 == 0 ? scale.x : scale.y, y[i]);
  }
}

__device__ __forceinline__ void dump_chunk(const WgmmaParams& p, const float (&sums)[32], int row,
                                           int token, int group) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int n = row + i % 4 / 2 * 8, m = token + i / 4 * 8 + i % 2;
    if (n >= p.y.n || m >= p.y.m) continue;
    p.sums[(static_cast<int64_t>(m) * p.y.n + n) * p.groups + group] =
        static_cast<int32_t>(sums[i]) / 4;
  }
}

// ---- All tiles of a block ----

template <int kTokens, int kCluster, bool kDump>
struct WgmmaMultiplier {
  using Shared = WgmmaShared<kTokens>;
  using Place = RingPlace<Shared::kStages>;
  static constexpr int kChunks = kTokens / kWgmmaChunk;

  // A group as it comes out of the ring.
  struct Group {
    Place at;
    uint32_t codes;    // descriptor of the tokens' codes
    float quarter[2];  // of the scales of the lane's rows
  };

  const WgmmaParams& p;
  unsigned char* memory;
  uint32_t shared;
  int row;           // of the block, of the warp's row tile
  int lane;          // 4g + t: rows g and g + 8 of the row tile; tokens 2t, 2t + 1 of every eight
  int rows, tokens;  // where the tile begins
  int group;         // of the tile
  int left;          // groups of all of the block's tiles, this one included
  uint32_t a[2][kStepsPerGroup][4];
  float y[kChunks][32];

  // All lanes have the same; the shuffle tells the compiler, which then keeps it in a uniform
  // register, as wgmma wants it.
  __device__ __forceinline__ uint32_t descriptor(const Place& at) const {
    return __shfl_sync(~0u, descriptor_address(shared + at.stage * Shared::kCodes), 0);
  }

  __device__ __forceinline__ void load(Group& of, uint32_t (&words)[kTileWords / 32]) const {
    const unsigned char* const tile =
        memory + Shared::kWeightAt + of.at.stage * Shared::kWeight + row / kTileRows * kTileBytes;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(tile + 512 * i + 16 * lane);
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
    const auto* const scales = reinterpret_cast<const __half*>(memory + Shared::kWeightScalesAt +
                                                               of.at.stage * Shared::kWeightScales);
    of.quarter[0] = 0.25f * __half2float(scales[row + lane / 4]);
    of.quarter[1] = 0.25f * __half2float(scales[row + lane / 4 + 8]);
  }

  template <int kParity>
  __device__ __forceinline__ void unpack(const uint32_t (&words)[kTileWords / 32]) {
#pragma unroll
    for (int s = 0; s < kStepsPerGroup; ++s) {
      unpack_int6(a[kParity][s], words[3 * s], words[3 * s + 1], words[3 * s + 2]);
    }
  }

  __device__ __forceinline__ void release(const Place& at) const {
    const uint32_t empty = shared + Shared::kEmptyAt + 8 * at.stage;
    __syncwarp();
    if constexpr (kCluster == 1) {
      if (lane == 0) mbarrier_arrive(empty);
    } else {
      if (lane < kCluster) mbarrier_arrive_at(empty, lane);
    }
  }

  __device__ __forceinline__ void wait_full(const Place& at) const {
    mbarrier_wait(shared + Shared::kFullAt + 8 * at.stage, at.parity);
  }

  // Starts what comes after a chunk, the next group's first after the last; then promotes it.
  template <int kParity, int kChunk>
  __device__ __forceinline__ void chunk(const Group& now, Group& next) {
    constexpr int kSet = (kParity * kChunks + kChunk) % 2;
    constexpr bool kLast = kChunk + 1 == kChunks;
    constexpr bool kLoads = kChunk == (kChunks == 1 ? 0 : kChunks - 2);
    uint32_t words[kTileWords / 32];
    if constexpr (kLoads && kLast) {
      if (left > 1) wait_full(next.at);
      load(next, words);
      unpack<1 - kParity>(words);
    }
    if constexpr (kLast) {
      multiply_chunk<1 - kSet>(a[1 - kParity], next.codes, p.groups < 0);
    } else {
      multiply_chunk<1 - kSet>(a[kParity], now.codes + (kChunk + 1) * kDescriptorRows64,
                               p.groups < 0);
    }
    float2 scales[8];
    const auto* const from = reinterpret_cast<const float2*>(
        memory + Shared::kScalesAt + now.at.stage * Shared::kScales + kChunk * kWgmmaChunk * 4 +
        lane % 4 * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) scales[j] = from[4 * j];
    wgmma_wait<1>();
    if constexpr (kLast) release(now.at);
    if constexpr (kLoads && !kLast) {
      if (left > 1) wait_full(next.at);
    }
    float sums[32];
    read_sums<kSet>(sums);
    if constexpr (kDump) {
      dump_chunk(p, sums, rows + row + lane / 4, tokens + kChunk * kWgmmaChunk + lane % 4 * 2,
                 group);
    } else {
      promote_chunk(y[kChunk], sums, now.quarter, scales);
    }
    if constexpr (kLoads && !kLast) {
      load(next, words);
      unpack<1 - kParity>(words);
    }
  }

  template <int kParity, int... kChunk>
  __device__ __forceinline__ void chunks(const Group& now, Group& next,
                                         std::integer_sequence<int, kChunk...>) {
    (chunk<kParity, kChunk>(now, next), ...);
  }

  // A group whose first chunk is under way. After the last of all, the first chunk of whatever lies
  // in the ring is multiplied, and not used: the loop needs no other code for its end.
  template <int kParity>
  __device__ __forceinline__ void step(Group& now) {
    Group next;
    next.at = now.at;
    next.at.advance();
    next.codes = descriptor(next.at);
    chunks<kParity>(now, next, std::make_integer_sequence<int, kChunks>());
    now = next;
    ++group;
    --left;
  }

  __device__ __forceinline__ void begin(int tile, int rank) {
    const auto where = p.tiles.at(tile);
    rows = (where.row_block * kCluster + rank) * kWgmmaRows;
    tokens = where.token_tile * kTokens;
    group = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 32; ++i) y[c][i] = 0;
    }
  }

  // Where the tile is complete: stores it, and begins the block's next one, if there is one.
  __device__ __forceinline__ void end_tile(int& tile, int rank) {
    if (group < p.groups) return;
    if constexpr (!kDump) {
      unsigned char* const staging = memory + Shared::kStagingAt + row / kTileRows * kStagingBytes;
      store_rows<kChunks>(p, y, staging, lane, rows + row, tokens);
    }
    tile += static_cast<int>(gridDim.x) / kCluster;
    if (left > 0) begin(tile, rank);
  }

  __device__ __forceinline__ void run() {
    const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
    const int clusters = static_cast<int>(gridDim.x) / kCluster;
    int tile = static_cast<int>(blockIdx.x) / kCluster;
    left = (p.tiles.count() - tile + clusters - 1) / clusters * p.groups;
    begin(tile, rank);
    Group now;
    now.codes = descriptor(now.at);
    uint32_t words[kTileWords / 32];
    wait_full(now.at);
    load(now, words);
    unpack<0>(words);
    multiply_chunk<0>(a[0], now.codes, p.groups < 0);
    while (true) {
      step<0>(now);
      end_tile(tile, rank);
      if (left == 0) break;
      step<1>(now);
      end_tile(tile, rank);
      if (left == 0) break;
    }
    // Never so, but without a way on the assembler waits for each wgmma of the loop (C7514).
    if (p.groups < 0) {
      step<0>(now);
    } else {
      wgmma_wait<0>();
    }
  }
};

template <int kTokens, int kCluster, bool kDump>
__global__ void FLEXQ_CLUSTER(kCluster) __launch_bounds__(kWgmmaThreads, 1)
    sm90_w6ax_wgmma_gemm(const __grid_constant__ WgmmaParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = WgmmaShared<kTokens>;
  extern __shared__ unsigned char memory[];
  const uint32_t shared = (shared_address(memory) + 1023) / 1024 * 1024;
  declare_sums();
  pdl_launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      mbarrier_init(shared + Shared::kFullAt + 8 * i, 1);
      mbarrier_init(shared + Shared::kEmptyAt + 8 * i, 8 * kCluster);  // multiplying warps
    }
    mbarrier_init_fence();
  }
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  if (threadIdx.x < 128) {
    keep_registers<24>();
    if (threadIdx.x == 0) copy_operands<kTokens, kCluster>(p, shared);
  } else {
    take_registers<240>();
    pdl_wait();
    const int warp = static_cast<int>(threadIdx.x) / 32 - 4;
    WgmmaMultiplier<kTokens, kCluster, kDump> multiplier{
        p, memory + (shared - shared_address(memory)), shared, 16 * warp,
        static_cast<int>(threadIdx.x) % 32};
    multiplier.run();
  }
#endif
}

}  // namespace flexq_kernels::gpu
