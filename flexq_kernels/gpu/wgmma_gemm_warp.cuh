// What a multiplying warp of the wgmma kernel has and does in every kind of tile: its outputs, the
// way through the parts of its block's schedule, sums that are handed over and stored.
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm_chunk.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_copy.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_store.cuh"

namespace flexq_kernels::gpu {

constexpr int kWgmmaChunk = 64;  // tokens of a set of sums

template <typename Tile, bool kDump>
struct WgmmaWarp {
  using Shared = WgmmaShared<Tile>;
  using Place = RingPlace<Shared::kStages>;
  static constexpr int kChunks = Tile::kTokens / kWgmmaChunk;

  const WgmmaParams& p;
  unsigned char* memory;
  uint32_t shared;
  int warp;  // among those that multiply; its row tiles are this one, and Tile::kWarps further on
  int lane;  // 4g + t: rows g and g + 8 of the row tile; tokens 2t, 2t + 1 of every eight
  WgmmaStep<Tile> at;
  float y[Tile::kRowTiles * kChunks][32];

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

  __device__ __forceinline__ void load_row_tile(TileWords& words, const Place& of,
                                                int row_tile) const {
    load_words(words,
               memory + Shared::kWeightAt + of.stage * Shared::kWeight +
                   (row_tile * Tile::kWarps + warp) * kTileBytes,
               fresh(lane));
  }

  __device__ __forceinline__ void load_row_scales(float (&rows)[2], const Place& of,
                                                  int row_tile) const {
    gpu::load_row_scales(rows, memory + Shared::kWeightScalesAt + of.stage * Shared::kWeightScales,
                         kTileRows * (row_tile * Tile::kWarps + warp) + fresh(lane) / 4);
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
        fresh(lane));
  }

  // Adds the sums of a chunk up, out of a set.
  template <int kRowTile, int kChunk, int kSet>
  __device__ __forceinline__ void promote(const float (&rows)[2], const float2 (&scales)[8]) {
    if constexpr (kDump) {
      float sums[32];
      read_sums<kSet>(sums);
      const auto where = at.place(p);
      dump_chunk(p, sums, where.rows + kTileRows * (kRowTile * Tile::kWarps + warp) + lane / 4,
                 where.tokens + kChunk * kWgmmaChunk + lane % 4 * 2, where.last - at.todo);
    } else {
      int32_t sums[32];
      read_sums_plus<kSet, kSumBias>(sums);
      promote_biased(y[kRowTile * kChunks + kChunk], sums, rows, scales);
    }
  }

  // Where the sums of a cut tile are handed over, this cluster's or the one's in front.
  static constexpr int kFours = Tile::kRowTiles * kChunks * 8;  // of a lane
  struct Handover {
    float4* sums;
    int32_t* flag;
  };
  __device__ __forceinline__ Handover handover(int block) const {
    const int first = fresh(block);
    return {reinterpret_cast<float4*>(p.handed) +
                (first * kFours * Tile::kWarps + fresh(warp)) * 32 + fresh(lane),
            p.handed_flags + first * kWgmmaMostWarps + fresh(warp)};
  }

  // A part's sums begin at 0, or where the cluster in front left off; a slice's at 0.
  __device__ __forceinline__ void begin_part() {
    if (Tile::kSliced || at.place(p).first == 0) {
#pragma unroll
      for (int i = 0; i < 4 * kFours; ++i) y[i / 32][i % 32] = 0;
      return;
    }
    const Handover from = handover(static_cast<int>(blockIdx.x) - Tile::kCluster);
    while (!__all_sync(~0u, load_acquire(from.flag) != 0)) {
    }
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const float4 four = __ldcg(from.sums + i * Tile::kWarps * 32);
      float* const to = &y[i / 8][i % 8 * 4];
      to[0] = four.x;
      to[1] = four.y;
      to[2] = four.z;
      to[3] = four.w;
    }
    __syncwarp();
    if (lane == 0) *from.flag = 0;
  }

  // Where a part ends: hands over the sums of a tile's first groups, or stores the tile, and begins
  // the next part. A slice's sums stay where they are.
  __device__ __forceinline__ void advance() {
    if (!at.advance() || Tile::kSliced) return;
    if constexpr (!kDump) {
      const auto where = at.place(p);
      if (where.last < p.groups) {
        const Handover to = handover(static_cast<int>(blockIdx.x));
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
          const float* const four = &y[i / 8][i % 8 * 4];
          __stcg(to.sums + i * Tile::kWarps * 32, make_float4(four[0], four[1], four[2], four[3]));
        }
        __syncwarp();
        if (lane == 0) store_release(to.flag, 1);
      } else {
#pragma unroll
        for (int r = 0; r < Tile::kRowTiles; ++r) {
          store_rows<kChunks, Tile::kGates>(
              p, y + r * kChunks, memory + Shared::kStagingAt + fresh(warp) * kStagingBytes,
              fresh(lane), where.rows + kTileRows * (r * Tile::kWarps + fresh(warp)), where.tokens);
        }
      }
    }
    if (at.left == 0) return;
    ++at.part;
    at.begin(p);
    if constexpr (!kDump) begin_part();
  }
};

}  // namespace flexq_kernels::gpu
