// What the attention keeps in shared memory, where the products keep their operand: so much of each
// unit (UnitMap), of those that go together side by side. slot: which of these; row: which of the
// query heads that share.
#pragma once

#include "ft/step/block.cuh"

namespace flexq_ft::step {

template <int kDim>
class AttentionRoom {
 public:
  __device__ __forceinline__ explicit AttentionRoom(const Place& place) : place_(place) {}

  __device__ __forceinline__ int sharing() const { return map().sharing; }
  __device__ __forceinline__ int row_bits() const { return map().row_bits; }

  __device__ __forceinline__ uint32_t query(int slot, int row) const {
    return at(slot, row * map().row);
  }
  // Of the newest token; which: 0 K, 1 V.
  __device__ __forceinline__ uint32_t newest(int slot, int which) const {
    return at(slot, map().newest + which * map().row);
  }
  __device__ __forceinline__ uint32_t top(int slot, int row, int warp) const {
    return at(slot, map().tops + (row * kWarps + warp) * 4);
  }
  __device__ __forceinline__ uint32_t most(int slot, int row) const {
    return at(slot, map().most + row * 4);
  }
  // length: tokens of the unit.
  __device__ __forceinline__ uint32_t sum(int slot, int row, int weighing, int length) const {
    return at(slot, map().sums + (row * weighings(length) + weighing) * 4);
  }
  // Of a unit's token. Exponentials of two neighbours, the first even: a pair of them, rounded, and
  // behind it what is left of them.
  __device__ __forceinline__ uint32_t score(int slot, int row, int token) const {
    return at(slot, map().scores + (row * map().pitch + token) * 4);
  }
  // which: of value_sums().
  __device__ __forceinline__ uint32_t value(int slot, int which, int row, int dim) const {
    return at(slot, map().values + ((which * sharing() + row) * kDim + dim) * 4);
  }

 private:
  __device__ __forceinline__ const UnitMap& map() const { return place_.args.map.unit; }
  __device__ __forceinline__ uint32_t at(int slot, int offset) const {
    return place_.at(place_.args.map.tokens + slot * map().bytes + offset);
  }

  const Place& place_;
};

}  // namespace flexq_ft::step
