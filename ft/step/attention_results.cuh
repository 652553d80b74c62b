// The attention's results: of a unit that is its head's only part, published at once; of others as
// parts, which the block of the head's first part adds up in their order.
#pragma once

#include "ft/kernels/attention_common.cuh"
#include "ft/step/attention_room.cuh"
#include "ft/step/attention_units.cuh"

namespace flexq_ft::step {

using gpu::exp2_fast;
using gpu::exponent_base;
using gpu::kMinusInfinity;

template <typename T, int kDim>
class AttentionResults {
 public:
  __device__ __forceinline__ AttentionResults(const Place& place, int index)
      : place_(place),
        args_(place.args),
        units_(place.args),
        room_(place),
        index_(index),
        epoch_(place.epoch(index / kLayerOps)) {}

  // Of units side by side.
  __device__ __forceinline__ void store_parts(int first, int count) const {
    disturb(args_, static_cast<uint32_t>(index_ * 64 + first));
    if (args_.disturbance.withheld_op == index_) return;
    for_pairs(count, [&](int slot, int row, int pair) {
      const AttentionUnit& unit = units_[first + slot];
      const int head = unit.head * room_.sharing() + row;
      const float weight = weight_of(unit, slot, row);
      const float2 value = value_of(unit, slot, row, pair);
      if (unit.parts == 1) {
        store_attended(unit, head, pair, value, weight);
        if (pair == 0 && row == 0) count_arrival(args_, kArrived + kAttention);
        return;
      }
      Packet* const to = part_of(unit, head, unit.part);
      store_packets(to + pair * 2, __float_as_uint(value.x), __float_as_uint(value.y), epoch_);
      if (pair == 0) {
        const float m = load_shared_float(room_.most(slot, row));
        store_packets(to + kDim, __float_as_uint(m), __float_as_uint(weight), epoch_);
      }
    });
  }

  // Of all units, the parts of heads whose first part is this block's.
  __device__ __forceinline__ void combine(int count) const {
    for_pairs(count, [&](int slot, int row, int pair) {
      const AttentionUnit& unit = units_[slot];
      if (unit.part != 0 || unit.parts == 1) return;
      combine_pair(unit, unit.head * room_.sharing() + row, pair);
      if (pair == 0 && row == 0) count_arrival(args_, kArrived + kAttention);
    });
  }

 private:
  static constexpr int kPairs = kDim / 2;
  static constexpr int kPartPackets = kDim + 2;

  // Two columns of a query head, by one thread each.
  template <typename Take>
  __device__ __forceinline__ void for_pairs(int count, const Take& take) const {
    const int row_bits = room_.row_bits();
    for (int i = place_.thread(); i < (count * kPairs) << row_bits; i += kComputeThreads) {
      const int at = i / kPairs, row = at & ((1 << row_bits) - 1);
      if (row < room_.sharing()) take(at >> row_bits, row, i % kPairs);
    }
  }

  __device__ __forceinline__ float weight_of(const AttentionUnit& unit, int slot, int row) const {
    const int length = unit.end - unit.begin;
    float weight = 0.0f;
    for (int w = 0; w < weighings(length); ++w) {
      weight += load_shared_float(room_.sum(slot, row, w, length));
    }
    return weight;
  }

  __device__ __forceinline__ float2 value_of(const AttentionUnit& unit, int slot, int row,
                                             int pair) const {
    float2 value = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < value_sums(kDim); ++i) {
      const uint2 v = load_shared_quad(room_.value(slot, i, row, pair * 2));
      value.x += __uint_as_float(v.x);
      value.y += __uint_as_float(v.y);
    }
    if (unit.newest != 0) add_newest(value, unit, slot, row, pair);
    return value;
  }

  __device__ __forceinline__ void add_newest(float2& value, const AttentionUnit& unit, int slot,
                                             int row, int pair) const {
    const int token = unit.end - 1 - unit.begin;
    const uint2 weights = load_shared_quad(room_.score(slot, row, token / 2 * 2));
    const float2 kept = unpack_pair<T>(weights.x), rest = unpack_pair<T>(weights.y);
    const float p = token % 2 == 0 ? kept.x + rest.x : kept.y + rest.y;
    const float2 v =
        unpack_pair<T>(load_shared_word(room_.newest(slot, 1) + static_cast<uint32_t>(pair * 4)));
    value.x = fmaf(p, v.x, value.x);
    value.y = fmaf(p, v.y, value.y);
  }

  __device__ __forceinline__ Packet* part_of(const AttentionUnit& unit, int head, int part) const {
    const int64_t row = static_cast<int64_t>(unit.sequence) * args_.heads + head;
    return args_.parts + (row * args_.max_parts + part) * kPartPackets;
  }

  __device__ __forceinline__ void store_attended(const AttentionUnit& unit, int head, int pair,
                                                 float2 value, float weight) const {
    const int64_t row = static_cast<int64_t>(unit.sequence) * args_.heads + head;
    store_packet(args_.attended + row * (kDim / 2) + pair,
                 pack_pair<T>(value.x / weight, value.y / weight), epoch_);
  }

  // In their order, a few at a time.
  __device__ __forceinline__ void combine_pair(const AttentionUnit& unit, int head,
                                               int pair) const {
    constexpr int kTogether = 4;
    float m = kMinusInfinity, weight = 0.0f;
    float2 value = make_float2(0.0f, 0.0f);
    for (int first = 0; first < unit.parts; first += kTogether) {
      uint2 got[2 * kTogether];  // of each part: its two columns, its maximum and its weight
      receive(
          got,
          [&](int j) {
            return part_of(unit, head, first + j / 2) + (j % 2 == 0 ? pair * 2 : kDim);
          },
          [&](int j) { return first + j / 2 < unit.parts; }, epoch_,
          Patience(args_, index_, false));
      float most_of = m;
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (first + j < unit.parts) most_of = fmaxf(most_of, __uint_as_float(got[2 * j + 1].x));
      }
      const float base = exponent_base(most_of);
      const float old = exp2_fast(m - base);
      weight *= old;
      value.x *= old;
      value.y *= old;
      m = most_of;
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (first + j >= unit.parts) continue;
        const float f = exp2_fast(__uint_as_float(got[2 * j + 1].x) - base);
        weight = fmaf(f, __uint_as_float(got[2 * j + 1].y), weight);
        value.x = fmaf(f, __uint_as_float(got[2 * j].x), value.x);
        value.y = fmaf(f, __uint_as_float(got[2 * j].y), value.y);
      }
    }
    store_attended(unit, head, pair, value, weight);
  }

  const Place& place_;
  const Args& args_;
  AttentionUnits units_;
  AttentionRoom<kDim> room_;
  int index_;
  uint32_t epoch_;
};

}  // namespace flexq_ft::step
