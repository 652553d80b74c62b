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

constexpr int kStreamWarps = 8;   // that multiply
constexpr int kStreamChains = 8;  // of groups: a block's, or of a cluster together

struct StreamArgs {
  Output y;
  Activations x;
  Weight w;
  int m = 0, n = 0;
  int groups = 0;
  int row_tiles = 0;
  int stages = 0, limit = 0;
  int32_t* sums = nullptr;  // of the entry that dumps them
};

// `count` things from `first` on.
struct StreamRange {
  int first = 0, count = 0;
};

// Part i of `parts` of `total` things, as even as whole things can be.
FLEXQ_HOST_DEVICE constexpr StreamRange even_part(int i, int parts, int total) {
  const auto begin = static_cast<int>(int64_t{i} * total / parts);
  return {begin, static_cast<int>((int64_t{i} + 1) * total / parts) - begin};
}

// Passes that `count` row tiles take at most `tiles` at a time.
FLEXQ_HOST_DEVICE constexpr int stream_passes(int count, int tiles) {
  return (count + tiles - 1) / tiles;
}

// Who has chains first_chain … + chains - 1 multiplies, of block b, the groups 8b + first_chain …,
// as far as there are groups: so many blocks, and groups of one.
FLEXQ_HOST_DEVICE constexpr int stream_blocks(int groups, int first_chain) {
  return groups <= first_chain ? 0 : (groups - first_chain + kStreamChains - 1) / kStreamChains;
}
FLEXQ_HOST_DEVICE constexpr int stream_block_groups(int groups, int first_chain, int chains,
                                                    int block) {
  const int left = groups - first_chain - block * kStreamChains;
  return left < chains ? left : chains;
}

// The order in which stages of the weight are asked for and multiplied: passes of row tiles, in
// them blocks of groups, in them the pass's row tiles.
class StreamCursor {
 public:
  FLEXQ_HOST_DEVICE constexpr StreamCursor(const StreamRange& share, int passes, int blocks)
      : share_(share), passes_(passes), blocks_(blocks) {
    if (blocks > 0 && passes > 0) tiles_ = even_part(0, passes, share.count);
  }

  FLEXQ_HOST_DEVICE constexpr bool left() const { return r_ < tiles_.count; }
  FLEXQ_HOST_DEVICE constexpr int tile() const { return share_.first + tiles_.first + r_; }
  FLEXQ_HOST_DEVICE constexpr int block() const { return block_; }

  FLEXQ_HOST_DEVICE constexpr void advance() {
    if (++r_ < tiles_.count) return;
    if (++block_ == blocks_) {
      if (++pass_ == passes_) return;
      block_ = 0;
      tiles_ = even_part(pass_, passes_, share_.count);
    }
    r_ = 0;
  }

 private:
  StreamRange share_;
  int passes_, blocks_;
  StreamRange tiles_;
  int pass_ = 0, block_ = 0, r_ = 0;
};

// The instance that a config names for so many tokens. False: there is none.
bool launch_stream_bulk(const StreamArgs& args, const StreamConfig& config, const Launch& launch);
bool launch_stream_async(const StreamArgs& args, const StreamConfig& config, const Launch& launch);

}  // namespace flexq_kernels::gpu
