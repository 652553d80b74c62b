// One product op of a step, as the computing warps see it: the operand, then the block's units of
// 16 rows, whose sums another warp finishes (finish.cuh).
//
// One piece of code for all products of a layer, whatever their kind: what a step executes must
// stay in the instruction caches.
#pragma once

#include "ft/step/normed_input.cuh"
#include "ft/step/partial_sums.cuh"
#include "ft/step/row_tile.cuh"

namespace flexq_ft::step {

template <typename T, Format kFormat, int kTokens>
class ProductOp {
 public:
  using Tile = RowTile<T, kFormat, kTokens>;

  __device__ __forceinline__ ProductOp(const Place& place, int index, int kind)
      : place_(place),
        args_(place.args),
        index_(index),
        kind_(kind),
        epoch_(place.epoch(index / kLayerOps)) {}

  __device__ __forceinline__ void run(RingReader& ring, PartialSums& partial, Pair<kTokens>& pair) {
    if (!has_work(place_.planned(index_))) return;
    read_operand(ring, pair);
    mark(place_, index_, kGathered);
    Tile tile(place_, place_.op(index_).k, ring, index_);
    const uint32_t sums_at = partial.of_lane<Tile>(place_);
#pragma unroll 1
    for (int u = unit_count(place_.planned(index_)); u > 0; --u) {
      const bool free = partial.is_free();
      tile.begin(ring.ahead());
      tile.add();
      if (!free) partial.await_free(index_);
      partial.put<kTokens>(tile, sums_at, ring.ahead());
      ring.pass(tile.stages());
      partial.hand_over();
    }
    tile.end();
  }

 private:
  __device__ __forceinline__ void read_operand(RingReader& ring, Pair<kTokens>& pair) {
    if (place_.op(index_).norm_weight != nullptr) {
      const bool first = kind_ != kUp;  // else of the layer before
      NormedInput<T, kFormat, kTokens>(place_, index_, pair, ring)
          .gather(first ? args_.stream_in : args_.stream_mid, epoch_ - (first ? 1 : 0));
    } else {
      TokenInput<T, kFormat, kTokens>(place_, index_, pair)
          .gather(kind_ == kO ? args_.attended : args_.raised, epoch_);
    }
  }

  const Place& place_;
  const Args& args_;
  int index_, kind_;
  uint32_t epoch_;
};

}  // namespace flexq_ft::step
