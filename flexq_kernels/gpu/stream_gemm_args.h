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

// Clusters of a kWide config that have the row tiles in even shares: as many as a GPU runs at once,
// or that many times more where a share would be more than a block's.
inline int stream_wide_clusters(int row_tiles, const StreamConfig& config, const Device& device) {
  // With clusters of four not every multiprocessor finds three others.
  const int used = config.split < 4 ? device.multiprocessors : device.multiprocessors / 16 * 16;
  const int at_once = used * config.blocks / config.split;
  const int rounds = (row_tiles + at_once * config.tiles - 1) / (at_once * config.tiles);
  return at_once * rounds < row_tiles ? at_once * rounds : row_tiles;
}

// Shared memory of a block of a kWide config: two places for the sums of all its tokens and row
// tiles, and a ring of stages, each a group of so many row tiles and of the tokens, with their
// scales.
FLEXQ_HOST_DEVICE constexpr int stream_wide_place_bytes(int tokens, int tiles) {
  return tiles * kTileRows * tokens * static_cast<int>(sizeof(float));
}
FLEXQ_HOST_DEVICE constexpr int stream_wide_stage_bytes(int tokens, int row_tiles) {
  return row_tiles * (kTileBytes + kTileRows * 2) + tokens * (kGroupSize + 4);
}
inline size_t stream_wide_shared_bytes(int tokens, int row_tiles, const StreamConfig& config,
                                       const Device& device) {
  const int clusters = stream_wide_clusters(row_tiles, config, device);
  return static_cast<size_t>(2 * stream_wide_place_bytes(tokens, config.tiles)) +
         static_cast<size_t>(config.stages) * static_cast<size_t>(stream_wide_stage_bytes(
                                                  tokens, (row_tiles + clusters - 1) / clusters));
}

// The instance that a config names for so many tokens. False: there is none.
bool launch_stream_narrow(const StreamArgs& args, const StreamConfig& config, const Launch& launch);
bool launch_stream_wide(const StreamArgs& args, const StreamConfig& config, const Launch& launch);

}  // namespace flexq_kernels::gpu
