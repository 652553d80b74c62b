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

// The row tiles of one block or cluster, in passes of at most `tiles`.
class StreamShare {
 public:
  FLEXQ_HOST_DEVICE constexpr StreamShare(int worker, int workers, int row_tiles, int tiles)
      : all_(EvenSplit(row_tiles, workers).part(worker)),
        passes_((all_.count + tiles - 1) / tiles),
        split_(all_.count, passes_) {}

  FLEXQ_HOST_DEVICE constexpr int passes() const { return passes_; }
  FLEXQ_HOST_DEVICE constexpr StreamRange pass(int i) const {
    const StreamRange part = split_.part(i);
    return {all_.first + part.first, part.count};
  }

 private:
  StreamRange all_;
  int passes_;
  EvenSplit split_;
};

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
  FLEXQ_HOST_DEVICE constexpr StreamCursor(const StreamShare& share, int blocks)
      : share_(share), blocks_(blocks) {
    if (blocks > 0) tiles_ = share_.pass(0);
  }

  FLEXQ_HOST_DEVICE constexpr bool left() const { return r_ < tiles_.count; }
  FLEXQ_HOST_DEVICE constexpr int tile() const { return tiles_.first + r_; }
  FLEXQ_HOST_DEVICE constexpr int block() const { return block_; }

  FLEXQ_HOST_DEVICE constexpr void advance() {
    if (++r_ < tiles_.count) return;
    if (++block_ == blocks_) {
      if (++pass_ == share_.passes()) return;
      block_ = 0;
      tiles_ = share_.pass(pass_);
    }
    r_ = 0;
  }

 private:
  StreamShare share_;
  int blocks_;
  StreamRange tiles_;
  int pass_ = 0, block_ = 0, r_ = 0;
};

// The instance that a config names for so many tokens. False: there is none.
bool launch_stream_bulk(const StreamArgs& args, const StreamConfig& config, const Launch& launch);
bool launch_stream_async(const StreamArgs& args, const StreamConfig& config, const Launch& launch);

}  // namespace flexq_kernels::gpu
