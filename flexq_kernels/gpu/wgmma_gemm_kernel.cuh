// The kernel of the wgmma family. One block per multiprocessor stays and takes tile after tile:
//
//   warpgroup 0   one thread copies, group after group and tile after tile, into a ring of stages:
//                 8 or 12 packed row tiles, their scales, the codes of the tokens (TMA swizzles
//                 them as wgmma wants B) and their scales. In a cluster of two each block copies
//                 half of the tokens' codes, to both.
//   warpgroup 1   rows  0 …  63 x all tokens of the tile
//   warpgroup 2   rows 64 … 127
//   warpgroup 3   rows 128 … 191, in tiles of 192 rows
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
//
// In tiles of 192 rows there are registers for one set of each only: a warpgroup waits for its
// chunk, reads the sums, starts the next chunk and then promotes; meanwhile the tensor core has
// the chunks of the other two.
#pragma once

#include <utility>

#include "flexq_kernels/gpu/wgmma_gemm_chunk.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_copy.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_store.cuh"

namespace flexq_kernels::gpu {

template <typename Tile>
constexpr int kWgmmaThreads = 128 + Tile::kWarps * 32;
constexpr int kWgmmaChunk = 64;  // tokens of one wgmma

template <typename Tile, bool kDump>
struct WgmmaMultiplier {
  using Shared = WgmmaShared<Tile>;
  using Place = RingPlace<Shared::kStages>;
  static constexpr int kChunks = Tile::kTokens / kWgmmaChunk;
  static constexpr bool kAlone = Tile::kWarps > 8;

  // A group as it comes out of the ring.
  struct Group {
    Place at;
    uint32_t codes;    // descriptor of the tokens' codes
    float quarter[2];  // of the scales of the lane's rows
  };

  const WgmmaParams& p;
  unsigned char* memory;
  uint32_t shared;
  int warp;  // among those that multiply, and its row tile
  int lane;  // 4g + t: rows g and g + 8 of the row tile; tokens 2t, 2t + 1 of every eight
  WgmmaStep<Tile> at;
  uint32_t a[kAlone ? 1 : 2][kStepsPerGroup][4];
  float y[kChunks][32];

  // The same number, for addresses that are not worth a register all the time.
  static __device__ __forceinline__ int fresh(int number) {
    asm volatile("" : "+r"(number));
    return number;
  }

  // All lanes have the same; the shuffle tells the compiler, which then keeps it in a uniform
  // register, as wgmma wants it.
  __device__ __forceinline__ uint32_t descriptor(const Place& at) const {
    return __shfl_sync(~0u, descriptor_address(shared + at.stage * Shared::kCodes), 0);
  }

  __device__ __forceinline__ void load(Group& of, TileWords& words) const {
    load_words(words,
               memory + Shared::kWeightAt + of.at.stage * Shared::kWeight + warp * kTileBytes,
               lane);
    load_quarters(of.quarter,
                  memory + Shared::kWeightScalesAt + of.at.stage * Shared::kWeightScales,
                  kTileRows * warp + fresh(lane) / 4);
  }

  __device__ __forceinline__ void release(const Place& at) const {
    const uint32_t empty = shared + Shared::kEmptyAt + 8 * at.stage;
    __syncwarp();
    if constexpr (Tile::kCluster == 1) {
      if (lane == 0) mbarrier_arrive(empty);
    } else {
      if (lane < Tile::kCluster) mbarrier_arrive_at(empty, lane);
    }
  }

  __device__ __forceinline__ void wait_full(const Place& at) const {
    mbarrier_wait(shared + Shared::kFullAt + 8 * at.stage, at.parity);
  }

  template <int kChunk>
  __device__ __forceinline__ void load_scales(float2 (&scales)[8], const Place& of) const {
    gpu::load_scales(
        scales, memory + Shared::kScalesAt + of.stage * Shared::kScales + kChunk * kWgmmaChunk * 4,
        lane);
  }

  // What becomes of the sums of a chunk.
  template <int kChunk>
  __device__ __forceinline__ void use(const float (&sums)[32], const Group& now,
                                      const float2 (&scales)[8]) {
    if constexpr (kDump) {
      const auto where = at.place(p);
      dump_chunk(p, sums, where.rows + kTileRows * warp + lane / 4,
                 where.tokens + kChunk * kWgmmaChunk + lane % 4 * 2, where.last - at.todo);
    } else {
      promote_chunk(y[kChunk], sums, now.quarter, scales);
    }
  }

  // Starts what comes after a chunk, the next group's first after the last; then promotes it.
  template <int kParity, int kChunk>
  __device__ __forceinline__ void chunk(const Group& now, Group& next) {
    constexpr int kSet = (kParity * kChunks + kChunk) % 2;
    constexpr bool kLast = kChunk + 1 == kChunks;
    constexpr bool kLoads = kChunk == (kChunks == 1 ? 0 : kChunks - 2);
    TileWords words;
    if constexpr (kLoads && kLast) {
      if (at.left > 1) wait_full(next.at);
      load(next, words);
      unpack_words(a[1 - kParity], words);
    }
    if constexpr (kLast) {
      multiply_chunk<1 - kSet, kWgmmaChunk>(a[1 - kParity], next.codes, p.groups < 0);
    } else {
      multiply_chunk<1 - kSet, kWgmmaChunk>(
          a[kParity], now.codes + (kChunk + 1) * kDescriptorRows64, p.groups < 0);
    }
    float2 scales[8];
    load_scales<kChunk>(scales, now.at);
    wgmma_wait<1>();
    if constexpr (kLast) release(now.at);
    if constexpr (kLoads && !kLast) {
      if (at.left > 1) wait_full(next.at);
    }
    float sums[32];
    read_sums<kSet>(sums);
    use<kChunk>(sums, now, scales);
    if constexpr (kLoads && !kLast) {
      load(next, words);
      unpack_words(a[1 - kParity], words);
    }
  }

  // The same with one set of sums and one of A registers: waits for the chunk first.
  template <int kChunk>
  __device__ __forceinline__ void chunk_alone(const Group& now, Group& next) {
    constexpr bool kLast = kChunk + 1 == kChunks;
    TileWords words;
    if constexpr (kLast) {
      if (at.left > 1) wait_full(next.at);
      load(next, words);
    }
    wgmma_wait<0>();
    if constexpr (kLast) unpack_words(a[0], words);
    float sums[32];
    read_sums<0>(sums);
    if constexpr (kLast) {
      multiply_chunk<0, kWgmmaChunk>(a[0], next.codes, p.groups < 0);
    } else {
      multiply_chunk<0, kWgmmaChunk>(a[0], now.codes + (kChunk + 1) * kDescriptorRows64,
                                     p.groups < 0);
    }
    float2 scales[8];
    load_scales<kChunk>(scales, now.at);
    use<kChunk>(sums, now, scales);
    if constexpr (kLast) release(now.at);
  }

  template <int kParity, int... kChunk>
  __device__ __forceinline__ void chunks(const Group& now, Group& next,
                                         std::integer_sequence<int, kChunk...>) {
    if constexpr (kAlone) {
      (chunk_alone<kChunk>(now, next), ...);
    } else {
      (chunk<kParity, kChunk>(now, next), ...);
    }
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
  }

  // Where the sums of a cut tile are handed over, this cluster's or the one's in front.
  struct Handover {
    float4* sums;
    int32_t* flag;
  };
  __device__ __forceinline__ Handover handover(int block) const {
    const int first = fresh(block);
    return {reinterpret_cast<float4*>(p.handed) +
                (first * kChunks * 8 * Tile::kWarps + fresh(warp)) * 32 + fresh(lane),
            p.handed_flags + first * kWgmmaMostWarps + fresh(warp)};
  }

  // A part's sums begin at 0, or where the cluster in front left off.
  __device__ __forceinline__ void begin_part() {
    if (at.place(p).first == 0) {
#pragma unroll
      for (int i = 0; i < kChunks * 32; ++i) y[i / 32][i % 32] = 0;
      return;
    }
    const Handover from = handover(static_cast<int>(blockIdx.x) - Tile::kCluster);
    while (!__all_sync(~0u, load_acquire(from.flag) != 0)) {
    }
#pragma unroll
    for (int i = 0; i < kChunks * 8; ++i) {
      const float4 four = __ldcg(from.sums + i * Tile::kWarps * 32);
      y[i / 8][i % 8 * 4] = four.x;
      y[i / 8][i % 8 * 4 + 1] = four.y;
      y[i / 8][i % 8 * 4 + 2] = four.z;
      y[i / 8][i % 8 * 4 + 3] = four.w;
    }
    __syncwarp();
    if (lane == 0) *from.flag = 0;
  }

  // Where a part ends: hands over the sums of a tile's first groups, or stores the tile, and begins
  // the next part.
  __device__ __forceinline__ void advance() {
    if (!at.advance()) return;
    if constexpr (!kDump) {
      const auto where = at.place(p);
      if (where.last < p.groups) {
        const Handover to = handover(static_cast<int>(blockIdx.x));
#pragma unroll
        for (int i = 0; i < kChunks * 8; ++i) {
          const float* const four = &y[i / 8][i % 8 * 4];
          __stcg(to.sums + i * Tile::kWarps * 32, make_float4(four[0], four[1], four[2], four[3]));
        }
        __syncwarp();
        if (lane == 0) store_release(to.flag, 1);
      } else {
        store_rows<kChunks>(p, y, memory + Shared::kStagingAt + fresh(warp) * kStagingBytes,
                            fresh(lane), where.rows + kTileRows * fresh(warp), where.tokens);
      }
    }
    if (at.left == 0) return;
    ++at.part;
    at.begin(p);
    if constexpr (!kDump) begin_part();
  }

  __device__ __forceinline__ void run() {
    begin_part();
    Group now;
    now.codes = descriptor(now.at);
    TileWords words;
    wait_full(now.at);
    load(now, words);
    unpack_words(a[0], words);
    multiply_chunk<0, kWgmmaChunk>(a[0], now.codes, p.groups < 0);
    while (true) {
      step<0>(now);
      advance();
      if (at.left == 0) break;
      if constexpr (!kAlone) {
        step<1>(now);
        advance();
        if (at.left == 0) break;
      }
    }
    // Never so, but without a way on the assembler waits for each wgmma of the loop (C7514).
    if (p.groups < 0) {
      step<0>(now);
    } else {
      wgmma_wait<0>();
    }
  }
};

template <typename Tile, bool kDump>
__global__ void FLEXQ_CLUSTER(Tile::kCluster) __launch_bounds__(kWgmmaThreads<Tile>, 1)
    sm90_w6ax_wgmma_gemm(const __grid_constant__ WgmmaParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = WgmmaShared<Tile>;
  extern __shared__ unsigned char memory[];
  const uint32_t shared = (shared_address(memory) + 1023) / 1024 * 1024;
  declare_sums();
  pdl_launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      mbarrier_init(shared + Shared::kFullAt + 8 * i, 1);
      mbarrier_init(shared + Shared::kEmptyAt + 8 * i, Tile::kWarps * Tile::kCluster);
    }
    mbarrier_init_fence();
  }
  if constexpr (Tile::kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync_relaxed();
  }
  if (threadIdx.x < 128) {
    keep_registers<24>();
    if (threadIdx.x == 0) copy_operands<Tile>(p, shared);
  } else {
    take_registers<Tile::kWarps == 8 ? 240 : 160>();
    pdl_wait();
    WgmmaMultiplier<Tile, kDump> multiplier{p,
                                            memory + (shared - shared_address(memory)),
                                            shared,
                                            static_cast<int>(threadIdx.x) / 32 - 4,
                                            static_cast<int>(threadIdx.x) % 32,
                                            WgmmaStep<Tile>(p)};
    multiplier.run();
  }
#endif
}

}  // namespace flexq_kernels::gpu
