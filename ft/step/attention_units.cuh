// The attention's work: the context of a sequence is cut into parts of equal length, which depend
// on it alone; a part of one KV head, with all query heads that share it, is a unit. Units are
// numbered by sequence, KV head and part, and block b takes b, b + blocks, … They are the same in
// every layer: a block lists its own once, in shared memory.
#pragma once

#include "ft/kernels/paged_kv.h"
#include "ft/step/block.cuh"

namespace flexq_ft::step {

// How one sequence's context is cut.
struct Parts {
  int cached;  // tokens in the cache: the newest one is not
  int length;  // of a part
  int count;

  __device__ __forceinline__ Parts(const Args& args, int sequence)
      : cached(__ldg(args.positions + sequence)) {
    const int all = cached + 1;
    length = part_length(all, args.max_parts, args.head_dim);
    count = (all + length - 1) / length;
  }
};

// Those of this block.
class AttentionUnits {
 public:
  __device__ __forceinline__ explicit AttentionUnits(const Args& args) {
    extern __shared__ __align__(1024) uint8_t shared[];
    count_ = reinterpret_cast<int*>(shared + args.map.units);
    units_ = reinterpret_cast<AttentionUnit*>(shared + args.map.units + 16);
  }

  __device__ __forceinline__ int count() const { return *count_; }
  __device__ __forceinline__ const AttentionUnit& operator[](int i) const { return units_[i]; }

  // By all threads, before a barrier of the block.
  __device__ __forceinline__ void list(const Args& args) const {
    const auto blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    int before = 0;
    for (int s = 0; s < args.tokens; ++s) {
      const Parts parts(args, s);
      const int units = args.kv_heads * parts.count;
      const int first = before > block ? (before - block + blocks - 1) / blocks : 0;
      for (int i = first + static_cast<int>(threadIdx.x); block + i * blocks < before + units;
           i += static_cast<int>(blockDim.x)) {
        const int at = block + i * blocks - before;
        AttentionUnit& unit = units_[i];
        unit.sequence = s;
        unit.head = at / parts.count;
        unit.part = at % parts.count;
        unit.parts = parts.count;
        unit.begin = unit.part * parts.length;
        unit.end = min(unit.begin + parts.length, parts.cached + 1);
        unit.cached = parts.cached;
        unit.newest = unit.part == parts.count - 1 ? 1 : 0;
      }
      before += units;
    }
    if (threadIdx.x == 0) *count_ = before > block ? (before - block + blocks - 1) / blocks : 0;
  }

 private:
  int* count_;
  AttentionUnit* units_;
};

// Tokens of the unit that are in the cache end here.
__device__ __forceinline__ int cached_end(const AttentionUnit& unit) {
  return min(unit.end, unit.cached);
}

}  // namespace flexq_ft::step
