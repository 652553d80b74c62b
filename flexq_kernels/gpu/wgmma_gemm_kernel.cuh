// The kernel of the wgmma family. One block per multiprocessor stays and takes tile after tile:
//
//   warpgroup 0   one thread copies, group after group and tile after tile, into a ring of stages:
//                 8 packed row tiles, their scales, the codes of the tokens (TMA swizzles them as
//                 wgmma wants B) and their scales. In a cluster of two each block copies half of
//                 the tokens' codes, to both.
//   warpgroup 1   rows  0 …  63 x all tokens of the tile
//   warpgroup 2   rows 64 … 127
//
// A warp unpacks its row tile once per group, and multiplies 64 tokens (a chunk) at a time into one
// of two sets of int32 sums. The chunk in front is turned into floats and added up while the tensor
// core works on the next (here three chunks; the sets change their roles from group to group):
//
//   tensor core   | g, chunk 0 | g, chunk 1 | g, chunk 2            | g + 1, chunk 0 | …
//   sums in set   | 0          | 1          | 0                     | 1              |
//   warp                       | promote 0  | promote 1, load g + 1 | promote 2,     |
//                                                       then unpack   give stage g back
#pragma once

#include <utility>

#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_copy.cuh"

namespace flexq_kernels::gpu {

constexpr int kWgmmaThreads = 3 * 128;
constexpr int kWgmmaChunk = 64;  // tokens of one wgmma

// What a thread of a multiplying warpgroup keeps of itself.
struct WgmmaLane {
  int row;    // of the block, of its warp's row tile
  int lane;   // 0 … 31
  int g, t;   // lane / 4, lane % 4
  int group;  // warpgroup, 0 or 1
};

__device__ __forceinline__ void load_words(uint32_t (&words)[12], const uint8_t* tile, int lane) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint4 chunk = *reinterpret_cast<const uint4*>(tile + 512 * i + 16 * lane);
    words[4 * i] = chunk.x;
    words[4 * i + 1] = chunk.y;
    words[4 * i + 2] = chunk.z;
    words[4 * i + 3] = chunk.w;
  }
}

__device__ __forceinline__ void unpack_words(uint32_t (&a)[kStepsPerGroup][4],
                                             const uint32_t (&words)[12]) {
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    unpack_int6(a[s], words[3 * s], words[3 * s + 1], words[3 * s + 2]);
  }
}

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
                                              const float (&quarter)[2], const float* scales) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * j);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float product = __fmul_rn(sums[4 * j + e], quarter[e / 2]);
      y[4 * j + e] = __fmaf_rn(product, e % 2 == 0 ? scale.x : scale.y, y[4 * j + e]);
    }
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

template <typename T, int kChunks>
__device__ __forceinline__ void store_sums(const WgmmaParams& p, const float (&y)[kChunks][32],
                                           unsigned char* staging, const WgmmaLane& me, int rows,
                                           int tokens) {
  T* const staged = reinterpret_cast<T*>(staging + me.group * kStoreBytes);
  const int row = me.row % kStoreBlock + me.g;  // of the warpgroup
  const int thread = me.row % kStoreBlock / kTileRows * 32 + me.lane;
  float bias[2] = {0, 0};
  if (p.y.bias != nullptr) {
    for (int i = 0; i < 2; ++i) {
      const int n = rows + me.group * kStoreBlock + row + 8 * i;
      if (n < p.y.n) bias[i] = p.y.bias[n];
    }
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    named_barrier(1 + me.group, 128);  // the block in front was read
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float value = p.y.bias == nullptr ? y[c][i] : y[c][i] + bias[i % 4 / 2];
      const int token = i / 4 * 8 + 2 * me.t + i % 2;
      staged[token * kStorePitch<T> + row + i % 4 / 2 * 8] = rounded<T>(value);
    }
    named_barrier(1 + me.group, 128);
    store_block<T, 128>(staged, p.y, tokens + c * kWgmmaChunk, rows + me.group * kStoreBlock,
                        thread);
  }
}

template <int kTokens, int kCluster, bool kDump>
struct WgmmaMultiplier {
  using Shared = WgmmaShared<kTokens>;
  using Place = RingPlace<Shared::kStages>;
  static constexpr int kChunks = kTokens / kWgmmaChunk;

  const WgmmaParams& p;
  unsigned char* memory;
  uint32_t shared;
  WgmmaLane me;
  int rows, tokens;  // where the tile begins
  uint32_t a[kStepsPerGroup][4];
  float y[kChunks][32];

  // Of the tokens' codes of a stage. All lanes have the same; the shuffle tells the compiler, which
  // then keeps it in a uniform register, as wgmma wants it.
  __device__ __forceinline__ uint32_t descriptor(const Place& at) const {
    return __shfl_sync(~0u, descriptor_address(shared + at.stage * Shared::kCodes), 0);
  }

  __device__ __forceinline__ void wait_and_load(uint32_t (&words)[12], const Place& at) const {
    mbarrier_wait(shared + Shared::kFullAt + 8 * at.stage, at.parity);
    load_words(
        words,
        memory + Shared::kWeightAt + at.stage * Shared::kWeight + me.row / kTileRows * kTileBytes,
        me.lane);
  }

  __device__ __forceinline__ void release(const Place& at) const {
    const uint32_t empty = shared + Shared::kEmptyAt + 8 * at.stage;
    __syncwarp();
    if constexpr (kCluster == 1) {
      if (me.lane == 0) mbarrier_arrive(empty);
    } else {
      if (me.lane < kCluster) mbarrier_arrive_at(empty, me.lane);
    }
  }

  // What the chunks of a group have in common.
  struct Group {
    int number;
    Place next;
    uint32_t codes;       // descriptor
    float quarter[2];     // of the scales of the lane's rows
    const float* scales;  // of the lane's tokens
  };

  // Starts what comes after a chunk, the next group's first if kMore; then promotes the chunk.
  template <int kParity, bool kMore, int kChunk>
  __device__ __forceinline__ void chunk(const Group& of) {
    constexpr int kSet = (kParity * kChunks + kChunk) % 2;
    if constexpr (kChunk + 1 < kChunks) {
      multiply_chunk<1 - kSet>(a, of.codes + (kChunk + 1) * kDescriptorRows64, p.groups < 0);
      wgmma_wait<1>();
    } else {
      uint32_t words[12];
      if (kMore) wait_and_load(words, of.next);
      wgmma_wait<0>();
      if (kMore) {
        unpack_words(a, words);
        multiply_chunk<1 - kSet>(a, descriptor(of.next), p.groups < 0);
      }
    }
    float sums[32];
    read_sums<kSet>(sums);
    if constexpr (kDump) {
      dump_chunk(p, sums, rows + me.row + me.g, tokens + kChunk * kWgmmaChunk + 2 * me.t,
                 of.number);
    } else {
      promote_chunk(y[kChunk], sums, of.quarter, of.scales + kChunk * kWgmmaChunk);
    }
  }

  template <int kParity, bool kMore, int... kChunk>
  __device__ __forceinline__ void chunks(const Group& of, std::integer_sequence<int, kChunk...>) {
    (chunk<kParity, kMore, kChunk>(of), ...);
  }

  // A group whose first chunk is under way. The assembler keeps track of sums under way only where
  // the groups of a loop's turn are all there in its code, the last one apart (kMore).
  template <int kParity, bool kMore>
  __device__ __forceinline__ void group(int number, Place& at) {
    const auto* const row_scales =
        reinterpret_cast<const __half*>(memory + Shared::kWeightScalesAt +
                                        at.stage * Shared::kWeightScales) +
        me.row + me.g;
    Group of;
    of.number = number;
    of.next = at;
    of.next.advance();
    of.codes = descriptor(at);
    of.quarter[0] = 0.25f * __half2float(row_scales[0]);
    of.quarter[1] = 0.25f * __half2float(row_scales[8]);
    of.scales =
        reinterpret_cast<const float*>(memory + Shared::kScalesAt + at.stage * Shared::kScales) +
        2 * me.t;
    chunks<kParity, kMore>(of, std::make_integer_sequence<int, kChunks>());
    release(at);
    at = of.next;
  }

  __device__ __forceinline__ void tile(Place& at) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 32; ++i) y[c][i] = 0;
    }
    uint32_t words[12];
    wait_and_load(words, at);
    unpack_words(a, words);
    multiply_chunk<0>(a, descriptor(at), p.groups < 0);
    int g = 0;
#pragma unroll 1
    for (; g + 2 < p.groups; g += 2) {
      group<0, true>(g, at);
      group<1, true>(g + 1, at);
    }
    if (g + 2 == p.groups) {
      group<0, true>(g, at);
      group<1, false>(g + 1, at);
    } else {
      group<0, false>(g, at);
    }
    if constexpr (!kDump) {
      unsigned char* const staging = memory + Shared::kStagingAt;
      if (p.type == FloatType::kFp32) {
        store_sums<float>(p, y, staging, me, rows, tokens);
      } else if (p.type == FloatType::kFp16) {
        store_sums<__half>(p, y, staging, me, rows, tokens);
      } else {
        store_sums<__nv_bfloat16>(p, y, staging, me, rows, tokens);
      }
    }
  }

  __device__ __forceinline__ void run() {
    const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
    const int clusters = static_cast<int>(gridDim.x) / kCluster, count = p.tiles.count();
    Place at;
    for (int i = static_cast<int>(blockIdx.x) / kCluster; i < count; i += clusters) {
      const auto where = p.tiles.at(i);
      rows = (where.row_block * kCluster + rank) * kWgmmaRows;
      tokens = where.token_tile * kTokens;
      tile(at);
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
    const int warp = static_cast<int>(threadIdx.x) / 32 - 4, lane = threadIdx.x % 32;
    WgmmaMultiplier<kTokens, kCluster, kDump> multiplier{
        p,
        memory + (shared - shared_address(memory)),
        shared,
        {16 * warp, lane, lane / 4, lane % 4, warp / 4}};
    multiplier.run();
  }
  // No block of a cluster may end while another still writes to its shared memory.
  if constexpr (kCluster > 1) {
    __syncwarp();
    cluster_sync();
  }
#endif
}

}  // namespace flexq_kernels::gpu
