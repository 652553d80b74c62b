// The attention of a step: every sequence's newest token over its paged cache, unit by unit
// (attention_units.cuh); the block of a head's first part adds the parts up in their order.
//
// K and V of the earlier tokens come through the ring, whose stages the teams take in turn; those
// of the newest one are in packets, and the block of the last part also writes them to the cache,
// for the steps to come. As many units as there is room for go through each phase together: what a
// phase costs is mostly waiting.
#pragma once

#include "flexq_kernels/gpu/tile_product.cuh"
#include "ft/kernels/attention_common.cuh"
#include "ft/kernels/rope.cuh"
#include "ft/step/attention_units.cuh"

namespace flexq_ft::step {

using gpu::exp2_fast;

constexpr float kLog2E = 1.4426950408889634f;

template <typename T, int kDim>
class AttentionOp {
 public:
  static constexpr int kStageTokens = stage_tokens(kDim);
  static constexpr int kEach = kDim / 16;     // dims of a lane, in each half of a head
  static constexpr int kColumns = kDim / 32;  // of a lane that adds up values
  static constexpr int kPairs = kDim / 2;
  static constexpr int kPartPackets = kDim + 2;

  __device__ __forceinline__ AttentionOp(const Place& place, int index)
      : place_(place),
        args_(place.args),
        units_(place.args),
        index_(index),
        epoch_(place.epoch(index / kLayerOps)),
        sharing_(args_.heads / args_.kv_heads),
        // Warps of one query head, in each team: 8, 4, 2 or 1.
        crew_(sharing_ == 1   ? 8
              : sharing_ == 2 ? 4
              : sharing_ <= 4 ? 2
                              : 1),
        member_(place.member() % crew_),
        row_(place.member() / crew_) {}

  __device__ __forceinline__ void run(RingReader& ring) const {
    const int count = units_.count(), together = args_.map.units_together;
#pragma unroll 1
    for (int first = 0; first < count; first += together) {
      const int here = min(together, count - first);
      receive_heads(first, here);
      compute_barrier();
#pragma unroll 1
      for (int slot = 0; slot < here; ++slot) score(units_[first + slot], slot, ring);
      compute_barrier();
#pragma unroll 1
      for (int slot = 0; slot < here; ++slot) add_up(units_[first + slot], slot, ring);
      compute_barrier();
      store_parts(first, here);
      compute_barrier();  // before the next units, or the next op, write there
    }
    mark(place_, index_, kGathered);
    combine(count);
  }

 private:
  // ---- shared memory, where the products keep their operand: unit_floats() of each unit ----
  __device__ __forceinline__ uint32_t at(int slot, int floats) const {
    return place_.at(args_.map.tokens + (slot * args_.map.unit_floats + floats) * 4);
  }
  __device__ __forceinline__ uint32_t query(int slot, int row) const {
    return at(slot, row * kDim);
  }
  __device__ __forceinline__ uint32_t newest(int slot, int which) const {
    return at(slot, (sharing_ + which) * kDim);
  }
  __device__ __forceinline__ uint32_t values(int slot, int warp) const {
    return at(slot, (sharing_ + 2 + warp) * kDim);
  }
  __device__ __forceinline__ uint32_t sum(int slot, int warp) const {
    return at(slot, (sharing_ + 2 + kWarps) * kDim + warp);
  }
  __device__ __forceinline__ uint32_t most(int slot, int warp) const {
    return sum(slot, kWarps + warp);
  }
  __device__ __forceinline__ uint32_t score_at(int slot, int row, int token, int length) const {
    return sum(slot, 2 * kWarps + row * length + token);
  }

  // ---- q, and K and V of the newest token ----

  // Heads of several units, one a warp.
  __device__ __forceinline__ void receive_heads(int first, int count) const {
    const int heads = sharing_ + 2;
    for (int i = place_.warp; i < count * heads; i += kWarps) {
      const int slot = i / heads, head = i % heads;
      const AttentionUnit& unit = units_[first + slot];
      if (head < sharing_) {
        receive_head(unit, unit.head * sharing_ + head, true, query(slot, head), nullptr);
      } else if (unit.newest != 0) {
        const Op& op = place_.op(index_);
        const bool is_key = head == sharing_;
        receive_head(unit, args_.heads + (is_key ? 0 : args_.kv_heads) + unit.head, is_key,
                     newest(slot, is_key ? 0 : 1),
                     static_cast<T*>(is_key ? op.k_pages : op.v_pages) + cache_row(unit));
      }
    }
  }

  // One head of a sequence's qkv row to shared memory, as floats, and to `cached` if there is such;
  // a lane takes two neighbours in each half, and turns them.
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
    float2 low = unpack_pair<T>(static_cast<uint32_t>(packets[0]));
    float2 high = unpack_pair<T>(static_cast<uint32_t>(packets[1]));
    if (turns) {
      gpu::rotate(low.x, high.x, cos.x, sin.x);
      gpu::rotate(low.y, high.y, cos.y, sin.y);
      low = make_float2(rounded<T>(low.x), rounded<T>(low.y));
      high = make_float2(rounded<T>(high.x), rounded<T>(high.y));
    }
    store_pair(to, dim, low);
    store_pair(to, kDim / 2 + dim, high);
    if (cached == nullptr) return;
    *reinterpret_cast<uint32_t*>(cached + dim) = pack_pair<T>(low.x, low.y);
    *reinterpret_cast<uint32_t*>(cached + kDim / 2 + dim) = pack_pair<T>(high.x, high.y);
  }

  static __device__ __forceinline__ void store_pair(uint32_t row, int dim, float2 x) {
    store_shared_quad(row + static_cast<uint32_t>(dim * 4),
                      make_uint2(__float_as_uint(x.x), __float_as_uint(x.y)));
  }

  __device__ __forceinline__ int64_t cache_row(const AttentionUnit& unit) const {
    const int page = __ldg(args_.pages + static_cast<int64_t>(unit.sequence) * args_.max_pages +
                           unit.cached / kPageTokens);
    return ((static_cast<int64_t>(page) * args_.kv_heads + unit.head) * kPageTokens +
            unit.cached % kPageTokens) *
           kDim;
  }

  // ---- scores: q times K, over eight lanes a token ----

  // Dims [c kEach, (c + 1) kEach) of both halves, c = lane % 8.
  __device__ __forceinline__ void score(const AttentionUnit& unit, int slot,
                                        RingReader& ring) const {
    const bool active = row_ < sharing_;
    const int length = unit.end - unit.begin, end = cached_end(unit);
    const float scale = kLog2E / sqrtf(static_cast<float>(kDim));
    const int c = place_.lane % 8, in_four = place_.lane / 8;
    float qa[kEach], qb[kEach];
    load_floats(qa, query(slot, min(row_, sharing_ - 1)) + static_cast<uint32_t>(c * kEach * 4));
    load_floats(qb, query(slot, min(row_, sharing_ - 1)) +
                        static_cast<uint32_t>((kDim / 2 + c * kEach) * 4));
    const int first = ring.ahead();
#pragma unroll 1
    for (int begin = unit.begin + first * kStageTokens; begin < end;
         begin += kTeams * kStageTokens) {
      const uint32_t stage = ring.wait(index_);
      const int fours = (min(kStageTokens, end - begin) + 3) / 4;
#pragma unroll 2
      for (int i = member_; i < fours; i += crew_) {
        const int token = i * 4 + in_four;
        const uint32_t row = stage + static_cast<uint32_t>(token * kDim * 2 + c * kEach * 2);
        const float s = dot(qa, qb, row);
        if (active && c == 0 && begin + token < end) {
          store_shared_float(score_at(slot, row_, begin - unit.begin + token, length), s * scale);
        }
      }
      ring.release();
    }
    ring.pass(stages_of(unit));
    if (unit.newest != 0 && active && member_ == 0 && first == 0) {
      float ka[kEach], kb[kEach];
      load_floats(ka, newest(slot, 0) + static_cast<uint32_t>(c * kEach * 4));
      load_floats(kb, newest(slot, 0) + static_cast<uint32_t>((kDim / 2 + c * kEach) * 4));
      float s = 0.0f;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        s = fmaf(qa[e], ka[e], s);
        s = fmaf(qb[e], kb[e], s);
      }
      s = over_eight(s);
      if (place_.lane == 0) store_shared_float(score_at(slot, row_, length - 1, length), s * scale);
    }
  }

  static __device__ __forceinline__ int stages_of(const AttentionUnit& unit) {
    return max(cached_end(unit) - unit.begin + kStageTokens - 1, 0) / kStageTokens;
  }

  static __device__ __forceinline__ void load_floats(float (&x)[kEach], uint32_t from) {
#pragma unroll
    for (int q = 0; q < kEach / 4; ++q) {
      const uint4 words = flexq_kernels::gpu::load_shared_words(from + q * 16);
      memcpy(x + q * 4, &words, 16);
    }
  }

  __device__ __forceinline__ float over_eight(float s) const {
    s += __shfl_xor_sync(kAllLanes, s, 1);
    s += __shfl_xor_sync(kAllLanes, s, 2);
    return s + __shfl_xor_sync(kAllLanes, s, 4);
  }

  // q times one token's K, over eight lanes.
  __device__ __forceinline__ float dot(const float (&qa)[kEach], const float (&qb)[kEach],
                                       uint32_t row) const {
    float s = 0.0f;
#pragma unroll
    for (int q = 0; q < kEach / 4; ++q) {
      float k[4];
      unpack_quad<T>(k, load_shared_quad(row + q * 8));
#pragma unroll
      for (int e = 0; e < 4; ++e) s = fmaf(qa[q * 4 + e], k[e], s);
      unpack_quad<T>(k, load_shared_quad(row + kDim + q * 8));
#pragma unroll
      for (int e = 0; e < 4; ++e) s = fmaf(qb[q * 4 + e], k[e], s);
    }
    return over_eight(s);
  }

  // ---- values: those of the tokens, by weight ----

  __device__ __forceinline__ void add_up(const AttentionUnit& unit, int slot,
                                         RingReader& ring) const {
    const int length = unit.end - unit.begin, end = cached_end(unit);
    const int row = min(row_, sharing_ - 1);
    float m = -INFINITY;
    for (int i = place_.lane; i < length; i += 32) {
      m = fmaxf(m, load_shared_float(score_at(slot, row, i, length)));
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, lanes));
    const float base = m == -INFINITY ? 0.0f : m;
    float acc[kColumns] = {};
    float weight = 0.0f;
    const int first = ring.ahead();
#pragma unroll 1
    for (int begin = unit.begin + first * kStageTokens; begin < end;
         begin += kTeams * kStageTokens) {
      const uint32_t stage = ring.wait(index_);
      const int here = min(kStageTokens, end - begin);
#pragma unroll 2
      for (int token = member_; token < here; token += crew_) {
        const float p = exp2_fast(
            load_shared_float(score_at(slot, row, begin - unit.begin + token, length)) - base);
        weight += p;
        add_values(acc, p, stage + static_cast<uint32_t>(token * kDim * 2));
      }
      ring.release();
    }
    ring.pass(stages_of(unit));
    if (unit.newest != 0 && member_ == 0 && first == 0) {
      const float p = exp2_fast(load_shared_float(score_at(slot, row, length - 1, length)) - base);
      weight += p;
#pragma unroll
      for (int e = 0; e < kColumns; ++e) {
        const auto column = static_cast<uint32_t>((place_.lane * kColumns + e) * 4);
        acc[e] = fmaf(p, load_shared_float(newest(slot, 1) + column), acc[e]);
      }
    }
    // In an order that does not depend on which team took the first stage.
    const int at = first * kTeamWarps + place_.member();
#pragma unroll
    for (int e = 0; e < kColumns; ++e) {
      const auto column = static_cast<uint32_t>((place_.lane * kColumns + e) * 4);
      store_shared_float(values(slot, at) + column, acc[e]);
    }
    if (place_.lane == 0) {
      store_shared_float(sum(slot, at), weight);
      store_shared_float(most(slot, at), m);
    }
  }

  __device__ __forceinline__ void add_values(float (&acc)[kColumns], float p, uint32_t row) const {
    if constexpr (kColumns == 4) {
      float v[4];
      unpack_quad<T>(v, load_shared_quad(row + static_cast<uint32_t>(place_.lane * 8)));
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[e] = fmaf(p, v[e], acc[e]);
    } else {
      const float2 v =
          unpack_pair<T>(load_shared_word(row + static_cast<uint32_t>(place_.lane * 4)));
      acc[0] = fmaf(p, v.x, acc[0]);
      acc[1] = fmaf(p, v.y, acc[1]);
    }
  }

  // ---- results ----

  // Two columns of a query head, by one thread each, of units side by side.
  __device__ __forceinline__ void store_parts(int first, int count) const {
    disturb(args_, static_cast<uint32_t>(index_ * 64 + first));
    if (args_.disturbance.withheld_op == index_) return;
    for (int i = place_.thread(); i < count * sharing_ * kPairs; i += kComputeThreads) {
      const int pair = i % kPairs, row = i / kPairs % sharing_, slot = i / kPairs / sharing_;
      const AttentionUnit& unit = units_[first + slot];
      const int head = unit.head * sharing_ + row;
      float weight = 0.0f;
      float2 value = make_float2(0.0f, 0.0f);
      for (int w = 0; w < kTeams * crew_; ++w) {
        const int warp = w / crew_ * kTeamWarps + row * crew_ + w % crew_;
        weight += load_shared_float(sum(slot, warp));
        const uint2 v = load_shared_quad(values(slot, warp) + static_cast<uint32_t>(pair * 8));
        value.x += __uint_as_float(v.x);
        value.y += __uint_as_float(v.y);
      }
      if (unit.parts == 1) {
        store_attended(unit, head, pair, value, weight);
        if (pair == 0 && row == 0) count_arrival(args_, kArrived + kAttention);
        continue;
      }
      Packet* const to = part_of(unit, head, unit.part);
      store_packets(to + pair * 2, __float_as_uint(value.x), __float_as_uint(value.y), epoch_);
      if (pair == 0) {
        const float m = load_shared_float(most(slot, row * crew_));
        store_packets(to + kDim, __float_as_uint(m), __float_as_uint(weight), epoch_);
      }
    }
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

  // The parts of heads whose first part is this block's, in their order, a few at a time.
  __device__ __forceinline__ void combine(int count) const {
    for (int i = place_.thread(); i < count * sharing_ * kPairs; i += kComputeThreads) {
      const int pair = i % kPairs, row = i / kPairs % sharing_;
      const AttentionUnit& unit = units_[i / kPairs / sharing_];
      if (unit.part != 0 || unit.parts == 1) continue;
      combine_pair(unit, unit.head * sharing_ + row, pair);
      if (pair == 0 && row == 0) count_arrival(args_, kArrived + kAttention);
    }
  }

  __device__ __forceinline__ void combine_pair(const AttentionUnit& unit, int head,
                                               int pair) const {
    constexpr int kTogether = 4;
    float m = -INFINITY, weight = 0.0f;
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
      const float base = most_of == -INFINITY ? 0.0f : most_of;
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
  int index_;
  uint32_t epoch_;
  int sharing_, crew_, member_, row_;
};

}  // namespace flexq_ft::step
