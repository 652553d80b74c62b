// Shared memory of the wgmma kernel, and the thread that fills it.
#pragma once

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/hopper.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_store.cuh"

namespace flexq_kernels::gpu {

constexpr int kWgmmaSharedBytes = 227 * 1024;  // of a block of sm_90, at most

// Shared memory, in this order; every part of a stage starts at a multiple of 128 bytes, the codes
// of the tokens at a multiple of 1024 (the swizzle's period).
template <int kTokens>
struct WgmmaShared {
  static constexpr int kCodes = kTokens * kGroupSize;
  static constexpr int kWeight = kWgmmaRows / kTileRows * kTileBytes;
  static constexpr int kWeightScales = kWgmmaRows * 2;
  static constexpr int kScales = kTokens * 4;
  static constexpr int kStage = kCodes + kWeight + kWeightScales + kScales;
  static constexpr int kFixed = 1024 + 8 * kStagingBytes + 256;  // alignment, staging, barriers
  static constexpr int kMost = (kWgmmaSharedBytes - kFixed) / kStage;
  static constexpr int kStages = kMost < 8 ? kMost : 8;
  static constexpr int kBytes = kFixed + kStages * kStage;

  static constexpr int kWeightAt = kStages * kCodes;
  static constexpr int kWeightScalesAt = kWeightAt + kStages * kWeight;
  static constexpr int kScalesAt = kWeightScalesAt + kStages * kWeightScales;
  static constexpr int kStagingAt = kScalesAt + kStages * kScales;
  static constexpr int kFullAt = kStagingAt + 8 * kStagingBytes;
  static constexpr int kEmptyAt = kFullAt + 8 * kStages;
  static_assert(kCodes % 1024 == 0 && kStages >= 3 && 16 * kStages <= 256);
};

// A place in the ring, and the parity of the phase that it is in.
template <int kStages>
struct RingPlace {
  uint32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The steps that a block takes: all groups of all of its tiles.
struct WgmmaStep {
  int tile, group;
  int rows, tokens;  // where the tile begins

  template <int kTokens, int kCluster>
  __device__ __forceinline__ void begin(const WgmmaParams& p, int rank) {
    const auto at = p.tiles.at(tile);
    rows = (at.row_block * kCluster + rank) * kWgmmaRows;
    tokens = at.token_tile * kTokens;
    group = 0;
  }
};

template <int kTokens, int kCluster>
__device__ __forceinline__ void copy_operands(const WgmmaParams& p, uint32_t shared) {
  using Shared = WgmmaShared<kTokens>;
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const int clusters = static_cast<int>(gridDim.x) / kCluster, count = p.tiles.count();

  const auto copy_weight = [&](const WgmmaStep& step, uint32_t stage) {
    const uint32_t full = shared + Shared::kFullAt + 8 * stage;
    mbarrier_arrive_expecting(full, Shared::kStage);
    copy_tensor(shared + Shared::kWeightAt + stage * Shared::kWeight, p.weight_codes, full, 0,
                step.group, step.rows / kTileRows);
    copy_tensor(shared + Shared::kWeightScalesAt + stage * Shared::kWeightScales, p.weight_scales,
                full, 0, step.group, step.rows / kTileRows);
  };
  const auto copy_tokens = [&](const WgmmaStep& step, uint32_t stage) {
    const uint32_t full = shared + Shared::kFullAt + 8 * stage;
    copy_tensor(shared + Shared::kScalesAt + stage * Shared::kScales, p.scales, full, step.tokens,
                step.group);
    const uint32_t to = shared + stage * Shared::kCodes;
    if constexpr (kCluster == 1) {
      copy_tensor(to, p.codes, full, step.group * kGroupSize, step.tokens);
    } else {
      constexpr int kPart = kTokens / kCluster;
      multicast_tensor(to + rank * kPart * kGroupSize, p.codes, full, step.group * kGroupSize,
                       step.tokens + rank * kPart, (1 << kCluster) - 1);
    }
  };
  const auto next = [&](WgmmaStep& step) {
    if (++step.group < p.groups) return;
    step.tile += clusters;
    if (step.tile < count) step.begin<kTokens, kCluster>(p, rank);
  };

  WgmmaStep step;
  step.tile = static_cast<int>(blockIdx.x) / kCluster;
  step.begin<kTokens, kCluster>(p, rank);
  WgmmaStep ahead = step;  // weights depend on no kernel in front: a ring full of them may come now
  for (uint32_t i = 0; i < Shared::kStages && ahead.tile < count; ++i, next(ahead)) {
    copy_weight(ahead, i);
  }
  pdl_wait();
  RingPlace<Shared::kStages> place;
  for (bool fresh = true; step.tile < count; next(step)) {
    if (!fresh) {
      mbarrier_wait(shared + Shared::kEmptyAt + 8 * place.stage, place.parity ^ 1);
      copy_weight(step, place.stage);
    }
    copy_tokens(step, place.stage);
    place.advance();
    fresh = fresh && place.stage != 0;
  }
  // Other blocks of the cluster write here, or arrive, no more once all that was copied was read.
  if constexpr (kCluster > 1) {
    for (uint32_t i = 0; i < Shared::kStages; ++i) {
      mbarrier_wait(shared + Shared::kEmptyAt + 8 * place.stage, place.parity ^ 1);
      place.advance();
    }
  }
}

}  // namespace flexq_kernels::gpu
