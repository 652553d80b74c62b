// Shared memory of the wgmma kernel, and the thread that fills it.
#pragma once

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/hopper.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_slice.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_store.cuh"

namespace flexq_kernels::gpu {

constexpr int kWgmmaSharedBytes = 227 * 1024;  // of a block of sm_90, at most

// Shared memory, in this order; every part of a stage starts at a multiple of 128 bytes, the codes
// of the tokens at a multiple of 1024 (the swizzle's period).
template <typename Tile>
struct WgmmaShared {
  static constexpr int kCodes = Tile::kTokens * kGroupSize;
  static constexpr int kWeight = Tile::kRows / kTileRows * kTileBytes;
  static constexpr int kWeightScales = Tile::kRows * 2;
  static constexpr int kScales = Tile::kTokens * 4;
  static constexpr int kStage = kCodes + kWeight + kWeightScales + kScales;
  static constexpr int kFixed =
      1024 + Tile::kWarps * kStagingBytes + 256;  // alignment, staging, barriers
  static constexpr int kMost = (kWgmmaSharedBytes - kFixed) / kStage;
  static constexpr int kStages = kMost < 8 ? kMost : 8;
  static constexpr int kBytes = kFixed + kStages * kStage;

  static constexpr int kWeightAt = kStages * kCodes;
  static constexpr int kWeightScalesAt = kWeightAt + kStages * kWeight;
  static constexpr int kScalesAt = kWeightScalesAt + kStages * kWeightScales;
  static constexpr int kStagingAt = kScalesAt + kStages * kScales;
  static constexpr int kFullAt = kStagingAt + Tile::kWarps * kStagingBytes;
  static constexpr int kEmptyAt = kFullAt + 8 * kStages;
  static_assert(kCodes % 1024 == 0 && kStages >= 3 && 16 * kStages <= 256);
};

// Counts the groups of all tiles that a block takes part in, one after the other.
template <typename Tile>
struct WgmmaStep {
  struct Place {
    int rows, tokens;  // where the part's tile begins
    int first, last;   // groups
  };

  int part = 0;  // of the cluster's schedule
  int left;      // groups, of all parts
  int todo;      // groups, of this part

  __device__ __forceinline__ explicit WgmmaStep(const WgmmaParams& p) {
    left = schedule(p).steps();
    begin(p);
  }

  static __device__ __forceinline__ auto schedule(const WgmmaParams& p) {
    if constexpr (Tile::kSliced) {
      return Slice(p);
    } else {
      int cluster = static_cast<int>(blockIdx.x) / Tile::kCluster;
      asm volatile("" : "+r"(cluster));  // else all is computed at the start, and takes registers
      return p.schedule.of(cluster);
    }
  }

  __device__ __forceinline__ Place place(const WgmmaParams& p) const {
    const WgmmaPart now = schedule(p).part(part);
    const auto at = p.tiles.at(now.tile);
    const int rank = Tile::kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
    return {(at.row_block * Tile::kCluster + rank) * Tile::kRows, at.token_tile * Tile::kTokens,
            now.first, now.last};
  }

  __device__ __forceinline__ void begin(const WgmmaParams& p) {
    const WgmmaPart now = schedule(p).part(part);
    todo = now.last - now.first;
  }

  // True where the part ends.
  __device__ __forceinline__ bool advance() {
    --left;
    return --todo == 0;
  }
};

template <typename Tile>
__device__ __forceinline__ void copy_operands(const WgmmaParams& p, uint32_t shared) {
  using Shared = WgmmaShared<Tile>;
  using Step = WgmmaStep<Tile>;
  struct Copied {
    Step step;
    typename Step::Place place;
    int group;

    __device__ __forceinline__ explicit Copied(const WgmmaParams& p) : step(p) { begin(p); }
    __device__ __forceinline__ void begin(const WgmmaParams& p) {
      place = step.place(p);
      group = place.first;
    }
    __device__ __forceinline__ void advance(const WgmmaParams& p) {
      ++group;
      if (!step.advance() || step.left == 0) return;
      ++step.part;
      step.begin(p);
      begin(p);
    }
  };

  const auto copy_weight = [&](const Copied& of, uint32_t stage) {
    const uint32_t full = shared + Shared::kFullAt + 8 * stage;
    mbarrier_arrive_expecting(full, Shared::kStage);
    copy_tensor(shared + Shared::kWeightAt + stage * Shared::kWeight, p.weight_codes, full, 0,
                of.group, of.place.rows / kTileRows);
    copy_tensor(shared + Shared::kWeightScalesAt + stage * Shared::kWeightScales, p.weight_scales,
                full, 0, of.group, of.place.rows / kTileRows);
  };
  const auto copy_tokens = [&](const Copied& of, uint32_t stage) {
    const uint32_t full = shared + Shared::kFullAt + 8 * stage;
    copy_tensor(shared + Shared::kScalesAt + stage * Shared::kScales, p.scales, full,
                of.place.tokens, of.group);
    const uint32_t to = shared + stage * Shared::kCodes;
    if constexpr (Tile::kCluster == 1) {
      copy_tensor(to, p.codes, full, of.group * kGroupSize, of.place.tokens);
    } else {
      constexpr int kPart = Tile::kTokens / Tile::kCluster;
      const int rank = static_cast<int>(cluster_rank());
      multicast_tensor(to + rank * kPart * kGroupSize, p.codes, full, of.group * kGroupSize,
                       of.place.tokens + rank * kPart, (1 << Tile::kCluster) - 1);
    }
  };

  Copied at(p);
  Copied ahead = at;  // weights depend on no kernel in front: a ring full of them may come now
  for (uint32_t i = 0; i < Shared::kStages && ahead.step.left > 0; ++i, ahead.advance(p)) {
    copy_weight(ahead, i);
  }
  pdl_wait();
  RingPlace<Shared::kStages> place;
  for (bool fresh = true; at.step.left > 0; at.advance(p)) {
    if (!fresh) {
      mbarrier_wait(shared + Shared::kEmptyAt + 8 * place.stage, place.parity ^ 1);
      copy_weight(at, place.stage);
    }
    copy_tokens(at, place.stage);
    place.advance();
    fresh = fresh && place.stage != 0;
  }
  // Other blocks of the cluster write here, or arrive, no more once all that was copied was read.
  if constexpr (Tile::kCluster > 1) {
    for (uint32_t i = 0; i < Shared::kStages; ++i) {
      mbarrier_wait(shared + Shared::kEmptyAt + 8 * place.stage, place.parity ^ 1);
      place.advance();
    }
  }
}

}  // namespace flexq_kernels::gpu
