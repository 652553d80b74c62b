// The attention of a step: every sequence's newest token over its paged cache, unit by unit
// (attention_units.cuh).
//
// K and V of the earlier tokens come through the ring, whose stages the teams take in turn; those
// of the newest one are in packets, and the block of the last part also writes them to the cache,
// for the steps to come. As many units as there is room for go through each phase together: what a
// phase costs is mostly waiting.
#pragma once

#include "flexq_kernels/gpu/tile_product.cuh"
#include "ft/kernels/rope.cuh"
#include "ft/step/attention_pages.cuh"
#include "ft/step/attention_results.cuh"

namespace flexq_ft::step {

template <typename T, int kDim>
class AttentionOp {
 public:
  __device__ __forceinline__ AttentionOp(const Place& place, int index)
      : place_(place),
        args_(place.args),
        units_(place.args),
        room_(place),
        index_(index),
        epoch_(place.epoch(index / kLayerOps)) {}

  __device__ __forceinline__ void run(RingReader& ring) const {
    const PageProducts<T, kDim> products(place_, index_);
    const AttentionResults<T, kDim> results(place_, index_);
    const int count = units_.count(), together = args_.map.units_together;
#pragma unroll 1
    for (int first = 0; first < count; first += together) {
      const int here = min(together, count - first);
      receive_heads(first, here);
      compute_barrier();
      int turn = place_.member();
#pragma unroll 1
      for (int slot = 0; slot < here; ++slot) {
        products.score(units_[first + slot], slot, turn, ring);
      }
      compute_barrier();
      weigh_all(first, here);
      compute_barrier();
#pragma unroll 1
      for (int slot = 0; slot < here; ++slot) products.add_up(units_[first + slot], slot, ring);
      compute_barrier();
      results.store_parts(first, here);
      compute_barrier();  // before the next units, or the next op, write there
    }
    mark(place_, index_, kGathered);
    results.combine(count);
  }

 private:
  // ---- q, and K and V of the newest token ----

  // Heads of several units, one a warp.
  __device__ __forceinline__ void receive_heads(int first, int count) const {
    const int heads = room_.sharing() + 2;
    for (int head = place_.warp, slot = 0;; head += kWarps) {
      for (; head >= heads; head -= heads) ++slot;
      if (slot >= count) break;
      const AttentionUnit& unit = units_[first + slot];
      if (head < room_.sharing()) {
        if (place_.lane < kWarps) {
          store_shared_float(room_.top(slot, head, place_.lane), kMinusInfinity);
        }
        receive_head(unit, unit.head * room_.sharing() + head, true, room_.query(slot, head),
                     nullptr);
      } else if (unit.newest != 0) {
        const Op& op = place_.op(index_);
        const bool is_key = head == room_.sharing();
        receive_head(unit, args_.heads + (is_key ? 0 : args_.kv_heads) + unit.head, is_key,
                     room_.newest(slot, is_key ? 0 : 1),
                     static_cast<T*>(is_key ? op.k_pages : op.v_pages) + cache_row(unit));
      }
    }
  }

  // One head of a sequence's qkv row to shared memory, and to `cached` if there is such; a lane
  // takes two neighbours in each half, and turns them.
  __device__ __forceinline__ void receive_head(const AttentionUnit& unit, int head, bool turned,
                                               uint32_t to, T* cached) const {
    if (place_.lane >= kDim / 4) return;
    const int dim = place_.lane * 2;
    float2 cos = make_float2(1.0f, 1.0f), sin = make_float2(0.0f, 0.0f);
    const bool turns = turned && args_.rope != nullptr;
    if (turns) {
      const float* const row =
          args_.rope + static_cast<int64_t>(min(unit.cached, args_.rope_rows - 1)) * kDim + dim;
      cos = __ldg(reinterpret_cast<const float2*>(row));
      sin = __ldg(reinterpret_cast<const float2*>(row + kDim / 2));
    }
    const int row = (args_.heads + 2 * args_.kv_heads) * kDim;
    const Packet* const from =
        args_.qkv + (static_cast<int64_t>(unit.sequence) * row + head * kDim + dim) / 2;
    Packet packets[2];
    Patience patience(args_, index_, false);
    for (;;) {
      packets[0] = load_packet(from);
      packets[1] = load_packet(from + kDim / 4);
      if (of_epoch(packets[0], epoch_) && of_epoch(packets[1], epoch_)) break;
      patience.wear();
    }
    auto low = static_cast<uint32_t>(packets[0]), high = static_cast<uint32_t>(packets[1]);
    if (turns) {
      float2 a = unpack_pair<T>(low), b = unpack_pair<T>(high);
      gpu::rotate(a.x, b.x, cos.x, sin.x);
      gpu::rotate(a.y, b.y, cos.y, sin.y);
      low = pack_pair<T>(a.x, a.y);
      high = pack_pair<T>(b.x, b.y);
    }
    store_shared_word(to + static_cast<uint32_t>(dim * 2), low);
    store_shared_word(to + static_cast<uint32_t>(kDim + dim * 2), high);
    if (cached == nullptr) return;
    *reinterpret_cast<uint32_t*>(cached + dim) = low;
    *reinterpret_cast<uint32_t*>(cached + kDim / 2 + dim) = high;
  }

  __device__ __forceinline__ int64_t cache_row(const AttentionUnit& unit) const {
    const int page = __ldg(args_.pages + static_cast<int64_t>(unit.sequence) * args_.max_pages +
                           unit.cached / kPageTokens);
    return ((static_cast<int64_t>(page) * args_.kv_heads + unit.head) * kPageTokens +
            unit.cached % kPageTokens) *
           kDim;
  }

  // ---- exponentials, and their sums ----

  __device__ __forceinline__ void weigh_all(int first, int count) const {
    const int row_bits = room_.row_bits();
#pragma unroll 1
    for (int i = place_.warp, slot = 0; slot < count; ++slot) {
      const AttentionUnit& unit = units_[first + slot];
      const int all = weighings(unit.end - unit.begin) << row_bits;
#pragma unroll 1
      for (; i < all; i += kWarps) {
        const int row = i & ((1 << row_bits) - 1);
        if (row < room_.sharing()) weigh(unit, slot, row, i >> row_bits);
      }
      i -= all;
    }
  }

  // To the end of the last page.
  __device__ __forceinline__ void weigh(const AttentionUnit& unit, int slot, int row,
                                        int weighing) const {
    const int length = unit.end - unit.begin;
    float m = kMinusInfinity;
#pragma unroll
    for (int i = 0; i < kWarps; i += 4) {
      const uint4 words = flexq_kernels::gpu::load_shared_words(room_.top(slot, row, i));
      m = fmaxf(m, fmaxf(fmaxf(__uint_as_float(words.x), __uint_as_float(words.y)),
                         fmaxf(__uint_as_float(words.z), __uint_as_float(words.w))));
    }
    const float base = exponent_base(m);
    const int end = min((length + kPageTokens - 1) / kPageTokens * kPageTokens,
                        (weighing + 1) * kWeighedTokens);
    float weight = 0.0f;
    for (int token = weighing * kWeighedTokens + place_.lane * 2; token < end; token += 64) {
      const uint32_t there = room_.score(slot, row, token);
      const uint2 s = load_shared_quad(there);
      const float a = token < length ? exp2_fast(__uint_as_float(s.x) - base) : 0.0f;
      const float b = token + 1 < length ? exp2_fast(__uint_as_float(s.y) - base) : 0.0f;
      weight += a + b;
      const uint32_t kept = pack_pair<T>(a, b);
      const float2 round = unpack_pair<T>(kept);
      store_shared_quad(there, make_uint2(kept, pack_pair<T>(a - round.x, b - round.y)));
    }
    weight = warp_sum(weight);
    if (place_.lane != 0) return;
    store_shared_float(room_.sum(slot, row, weighing, length), weight);
    if (weighing == 0) store_shared_float(room_.most(slot, row), m);
  }

  const Place& place_;
  const Args& args_;
  AttentionUnits units_;
  AttentionRoom<kDim> room_;
  int index_;
  uint32_t epoch_;
};

}  // namespace flexq_ft::step
