// What the launcher of the stream family hands to its kernels, and who multiplies what.
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/stream_gemm.h"

#if defined(__CUDACC__)
#define FLEXQ_HOST_DEVICE __host__ __device__
#else
#define FLEXQ_HOST_DEVICE
#endif

namespace flexq_kernels::gpu {

// Of groups, one after the other in k; in most kernels each is a warp's.
constexpr int kStreamChains = 8;

struct StreamArgs {
  Output y;
  Activations x;
  Weight w;
  int m = 0, n = 0;
  int groups = 0;
  int row_tiles = 0;
  int split = 1;            // blocks of a cluster (kWide)
  int32_t* sums = nullptr;  // of the entry that dumps them
};

// `count` things from `first` on.
struct StreamRange {
  int first = 0, count = 0;
};

// Whole things in parts as even as can be; the first parts have one more.
class EvenSplit {
 public:
  FLEXQ_HOST_DEVICE constexpr EvenSplit(int total, int parts)
      : least_(total / parts), longer_(total - total / parts * parts) {}
  FLEXQ_HOST_DEVICE constexpr StreamRange part(int i) const {
    return {i * least_ + (i < longer_ ? i : longer_), least_ + (i < longer_ ? 1 : 0)};
  }

 private:
  int least_, longer_;
};

// The groups of a chain, as even as can be: none for some where k has fewer than eight groups.
FLEXQ_HOST_DEVICE constexpr StreamRange stream_chain(int groups, int chain) {
  return EvenSplit(groups, kStreamChains).part(chain);
}

// ---- kWide ----

constexpr int kWideTokens = 32;
constexpr int kWideTiles = 8;                               // row tiles of a block, at most
constexpr int kWideStages = 4;                              // of its ring
constexpr int kWideBlocks = 2;                              // of a multiprocessor
constexpr int kWideTileBytes = kTileBytes + 2 * kTileRows;  // codes and scales of a group

// A group of so many row tiles and of the tokens, with their scales.
FLEXQ_HOST_DEVICE constexpr int wide_stage_bytes(int row_tiles) {
  return row_tiles * kWideTileBytes + kWideTokens * (kGroupSize + 4);
}
// The sums of both halves of k, and the ring.
FLEXQ_HOST_DEVICE constexpr int wide_shared_bytes(int row_tiles) {
  return 2 * 4 * kWideTiles * kTileRows * kWideTokens + kWideStages * wide_stage_bytes(row_tiles);
}

inline bool wide_fits(const StreamConfig& config, const Device& device) {
  return (config.split == 1 || (config.split == 2 && device.capability() >= 90)) &&
         static_cast<size_t>(wide_shared_bytes(kWideTiles)) <= device.shared_per_block;
}

// Clusters of `split` blocks that have the row tiles in even shares: as many as a GPU runs at once,
// or that many times more where a share would be more than a block's.
inline int wide_clusters(int row_tiles, const StreamConfig& config, const Device& device) {
  const int at_once = device.multiprocessors * kWideBlocks / config.split;
  const int rounds = (row_tiles + at_once * kWideTiles - 1) / (at_once * kWideTiles);
  return at_once * rounds < row_tiles ? at_once * rounds : row_tiles;
}

// The instance that a config names for so many tokens. False: there is none.
bool launch_stream_narrow(const StreamArgs& args, const StreamConfig& config, const Launch& launch);
bool launch_stream_wide(const StreamArgs& args, const StreamConfig& config, const Launch& launch);

}  // namespace flexq_kernels::gpu
