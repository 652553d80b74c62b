// The sums of a unit of rows, of each computing warp, on their way to the warp that finishes them:
// two buffers, so that the next unit's sums are made meanwhile.
//   [2 units][warps][tokens][16 rows], fp32 or int32
// in the order of the warps of a team that began with a row's first stage, then with its second.
#pragma once

#include "ft/step/block.cuh"

namespace flexq_ft::step {

// One side's view: the computing warps', or the finishing warp's.
class PartialSums {
 public:
  __device__ __forceinline__ PartialSums(const Args& args, uint32_t base)
      : args_(args), base_(base) {}

  // By one thread, before a barrier of the block.
  __device__ __forceinline__ void make() const {
    for (uint32_t buffer = 0; buffer < 2; ++buffer) {
      mbarrier_init(full(buffer), kWarps);
      mbarrier_init(empty(buffer), 1);
    }
  }

  // ---- of a computing warp, in this order ----
  // Asked early, so that nobody waits for the answer; if not, await_free().
  __device__ __forceinline__ bool is_free() const {
    return mbarrier_passed(empty(buffer()), parity() ^ 1);
  }
  __device__ __forceinline__ void await_free(int op) const {
    bounded_wait(empty(buffer()), parity() ^ 1, args_, op);
  }
  // first: the stage of the rows that the warp's team began with; lane: of_lane().
  template <int kTokens, typename Tile>
  __device__ __forceinline__ void put(const Tile& tile, uint32_t lane, int first) const {
    const int part = static_cast<int>(buffer()) * kTeams + first;
    const uint32_t to = lane + static_cast<uint32_t>(part * kTeamWarps * warp_bytes());
    const int token = anew(static_cast<int>(threadIdx.x)) % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((kTokens == 1 && i % 2 != 0) || token + i % 2 >= args_.tokens) continue;
      const auto sum = tile.at(i);
      uint32_t word;
      memcpy(&word, &sum, 4);
      store_shared_word(to + (i % 2 * kStageRows + i / 2 * 8) * 4, word);
    }
  }
  // Where a lane's sums of the first unit go, of the team that begins.
  template <typename Tile>
  __device__ __forceinline__ uint32_t of_lane(const Place& place) const {
    const int token = place.lane % 4 * 2;
    return sums() + static_cast<uint32_t>(place.member() * warp_bytes() +
                                          (token * kStageRows + Tile::row_of(place.lane / 4)) * 4);
  }
  __device__ __forceinline__ void hand_over() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(full(buffer()));
    ++unit_;
  }

  // ---- of the finishing warp ----
  __device__ __forceinline__ void await_full(int op) const {
    bounded_wait(full(buffer()), parity(), args_, op);
  }
  // [tokens][16] of one warp, of the unit at hand.
  __device__ __forceinline__ uint32_t of_warp(int warp) const {
    const int at = static_cast<int>(buffer()) * kWarps + warp;
    return sums() + static_cast<uint32_t>(at * warp_bytes());
  }
  __device__ __forceinline__ void hand_back() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty(buffer()));
    ++unit_;
  }

 private:
  __device__ __forceinline__ uint32_t sums() const {
    return base_ + static_cast<uint32_t>(args_.map.partial);
  }
  // Of one warp's sums.
  __device__ __forceinline__ int warp_bytes() const { return args_.tokens * kStageRows * 4; }
  __device__ __forceinline__ uint32_t full(uint32_t buffer) const {
    return base_ + static_cast<uint32_t>(args_.map.handover) + buffer * 8;
  }
  __device__ __forceinline__ uint32_t empty(uint32_t buffer) const { return full(buffer) + 16; }
  // Of the unit at hand. One number for both: registers are scarce.
  __device__ __forceinline__ uint32_t buffer() const { return unit_ % 2; }
  __device__ __forceinline__ uint32_t parity() const { return unit_ / 2 % 2; }

  const Args& args_;
  uint32_t base_;
  uint32_t unit_ = 0;  // of the step
};

}  // namespace flexq_ft::step
