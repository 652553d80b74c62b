// The attention of a step: every sequence's newest token over its paged cache. The context of a
// sequence is cut into parts of equal length, which depend on it alone; a part of one KV head, with
// all query heads that share it, is the work of one block, and the block of the first part adds the
// parts up in their order.
//
// K and V of the earlier tokens come through the ring; those of the newest one are in packets, and
// the block of the last part also writes them to the cache, for the steps to come.
#pragma once

#include "ft/kernels/attention_common.cuh"
#include "ft/kernels/rope.cuh"
#include "ft/step/block.cuh"

namespace flexq_ft::step {

using gpu::exp2_fast;

constexpr int kLeastPart = 64;
constexpr float kLog2E = 1.4426950408889634f;

// Tokens of K or of V in a stage: 8 KB.
__device__ __host__ __forceinline__ int stage_tokens(int head_dim) { return 4096 / head_dim; }

// How one sequence's context is cut.
struct Parts {
  int cached;  // tokens in the cache: the newest one is not
  int length;  // of a part
  int count;

  __device__ __forceinline__ Parts(const Args& args, int sequence)
      : cached(args.positions[sequence]) {
    const int step = stage_tokens(args.head_dim);
    const int all = cached + 1;
    const int even = (all + args.max_parts - 1) / args.max_parts;
    length = max((even + step - 1) / step * step, kLeastPart);
    count = (all + length - 1) / length;
  }
};

// The units of a step, in order: sequence, KV head, part; block b takes units b, b + blocks, …
struct AttentionUnit {
  int sequence, head, part;
  int begin, end;  // tokens of the part, the newest one included
  int cached;
  int parts;
  bool newest;  // the part has the newest token

  __device__ __forceinline__ int cached_end() const { return min(end, cached); }
};

class AttentionUnits {
 public:
  __device__ __forceinline__ explicit AttentionUnits(const Args& args)
      : args_(args), next_(static_cast<int>(blockIdx.x)) {}

  __device__ __forceinline__ bool next(AttentionUnit& unit) {
    while (sequence_ < args_.tokens) {
      const Parts parts(args_, sequence_);
      const int units = args_.kv_heads * parts.count;
      const int at = next_ - before_;
      if (at < units) {
        unit.sequence = sequence_;
        unit.head = at / parts.count;
        unit.part = at % parts.count;
        unit.begin = unit.part * parts.length;
        unit.end = min(unit.begin + parts.length, parts.cached + 1);
        unit.cached = parts.cached;
        unit.parts = parts.count;
        unit.newest = unit.part == parts.count - 1;
        next_ += static_cast<int>(gridDim.x);
        return true;
      }
      before_ += units;
      ++sequence_;
    }
    return false;
  }

 private:
  const Args& args_;
  int next_;
  int before_ = 0;  // units of the sequences before this one
  int sequence_ = 0;
};

template <typename T, int kDim>
class AttentionOp {
 public:
  static constexpr int kStageTokens = 4096 / kDim;
  static constexpr int kEach = kDim / 16;     // dims of a lane, in each half of a head
  static constexpr int kColumns = kDim / 32;  // of a lane that adds up values
  static constexpr int kPartPackets = kDim + 2;

  __device__ __forceinline__ AttentionOp(const Place& place, int index, const Epochs& epochs)
      : place_(place),
        args_(place.args),
        index_(index),
        epoch_(epochs.of_layer(index / kLayerOps)),
        sharing_(args_.heads / args_.kv_heads),
        // Warps of one query head: 8, 4, 2 or 1.
        team_(sharing_ == 1   ? 8
              : sharing_ == 2 ? 4
              : sharing_ <= 4 ? 2
                              : 1),
        member_(place.warp % team_),
        row_(place.warp / team_) {}

  __device__ __forceinline__ void run(RingReader& ring) {
    AttentionUnits units(args_);
    AttentionUnit unit;
    while (units.next(unit)) part(unit, ring);
    mark(place_, index_, kGathered);
    AttentionUnits again(args_);
    while (again.next(unit)) {
      if (unit.part == 0 && unit.parts > 1) combine(unit);
    }
  }

 private:
  // ---- shared memory, where the products keep their operand ----
  //   scores [sharing][part length], newest K and V [2][kDim], values [warps][kDim], sums [warps]
  __device__ __forceinline__ uint32_t at(int floats) const {
    return place_.at(args_.map.tokens) + static_cast<uint32_t>(floats * 4);
  }
  __device__ __forceinline__ uint32_t newest(int which) const { return at(which * kDim); }
  __device__ __forceinline__ uint32_t values(int warp) const { return at((2 + warp) * kDim); }
  __device__ __forceinline__ uint32_t sum(int warp) const { return at((2 + kWarps) * kDim + warp); }
  __device__ __forceinline__ uint32_t most(int warp) const {
    return at((2 + kWarps) * kDim + kWarps + warp);
  }
  __device__ __forceinline__ uint32_t score(int row, int token, int length) const {
    return at((2 + kWarps) * kDim + 2 * kWarps + row * length + token);
  }

  // Where head `head` of the qkv row of a sequence begins.
  __device__ __forceinline__ const Packet* packets(int sequence, int head) const {
    const int row = (args_.heads + 2 * args_.kv_heads) * kDim;
    return args_.qkv + (static_cast<int64_t>(sequence) * row + head * kDim) / 2;
  }

  // Dims [c kEach, (c + 1) kEach) of both halves of a head, c = lane % 8, turned.
  __device__ __forceinline__ void receive_turned(float (&a)[kEach], float (&b)[kEach],
                                                 const AttentionUnit& unit, int head) const {
    const int c = place_.lane % 8;
    constexpr int kQuads = kEach / 4;
    float cos[kEach], sin[kEach];
    const bool turns = args_.rope != nullptr;
    if (turns) {
      const float* const row = args_.rope +
                               static_cast<int64_t>(min(unit.cached, args_.rope_rows - 1)) * kDim +
                               c * kEach;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        cos[e] = __ldg(row + e);
        sin[e] = __ldg(row + kDim / 2 + e);
      }
    }
    uint2 quads[2 * kQuads];
    const Packet* const from = packets(unit.sequence, head) + c * (kEach / 2);
    receive(
        quads, [&](int i) { return from + (i / kQuads) * (kDim / 4) + i % kQuads * 2; },
        [](int) { return true; }, epoch_, Patience(args_, index_, false));
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      float low[4], high[4];
      unpack_quad<T>(low, quads[q]);
      unpack_quad<T>(high, quads[kQuads + q]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float x = low[e], y = high[e];
        if (turns) {
          gpu::rotate(x, y, cos[q * 4 + e], sin[q * 4 + e]);
          x = rounded<T>(x);
          y = rounded<T>(y);
        }
        a[q * 4 + e] = x;
        b[q * 4 + e] = y;
      }
    }
  }

  __device__ __forceinline__ int64_t cache_row(const AttentionUnit& unit) const {
    const int page = __ldg(args_.pages + static_cast<int64_t>(unit.sequence) * args_.max_pages +
                           unit.cached / kPageTokens);
    return ((static_cast<int64_t>(page) * args_.kv_heads + unit.head) * kPageTokens +
            unit.cached % kPageTokens) *
           kDim;
  }

  // The newest K and V: to shared memory, as floats, and to the cache.
  __device__ __forceinline__ void take_newest(const AttentionUnit& unit) const {
    const Op& op = place_.op(index_);
    const int c = place_.lane % 8;
    if (place_.warp == 0) {
      float a[kEach], b[kEach];
      receive_turned(a, b, unit, args_.heads + unit.head);
      if (place_.lane >= 8) return;
      T* const to = static_cast<T*>(op.k_pages) + cache_row(unit);
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        to[c * kEach + e] = from_float<T>(a[e]);
        to[kDim / 2 + c * kEach + e] = from_float<T>(b[e]);
        store_shared_float(newest(0) + static_cast<uint32_t>((c * kEach + e) * 4), a[e]);
        store_shared_float(newest(0) + static_cast<uint32_t>((kDim / 2 + c * kEach + e) * 4), b[e]);
      }
    } else if (place_.warp == 1 && place_.lane * 4 < kDim) {
      uint2 quad[1];
      const Packet* const from =
          packets(unit.sequence, args_.heads + args_.kv_heads + unit.head) + place_.lane * 2;
      receive(
          quad, [&](int) { return from; }, [](int) { return true; }, epoch_,
          Patience(args_, index_, false));
      *reinterpret_cast<uint2*>(static_cast<T*>(op.v_pages) + cache_row(unit) + place_.lane * 4) =
          quad[0];
      float x[4];
      unpack_quad<T>(x, quad[0]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        store_shared_float(newest(1) + static_cast<uint32_t>((place_.lane * 4 + e) * 4), x[e]);
      }
    }
  }

  __device__ __forceinline__ void part(const AttentionUnit& unit, RingReader& ring) const {
    const bool active = row_ < sharing_;
    const int head = unit.head * sharing_ + min(row_, sharing_ - 1);
    const int length = unit.end - unit.begin;
    const float scale = kLog2E / sqrtf(static_cast<float>(kDim));
    float qa[kEach], qb[kEach];
    receive_turned(qa, qb, unit, head);
    if (unit.newest) take_newest(unit);
    __syncwarp();
    compute_barrier();

    const int c = place_.lane % 8, in_four = place_.lane / 8;
    for (int begin = unit.begin; begin < unit.cached_end(); begin += kStageTokens) {
      const uint32_t stage = ring.wait(index_);
#pragma unroll 2
      for (int i = member_; i < kStageTokens / 4; i += team_) {
        const int token = i * 4 + in_four;
        const uint32_t row = stage + static_cast<uint32_t>(token * kDim * 2 + c * kEach * 2);
        const float s = dot(qa, qb, row);
        if (active && c == 0 && begin + token < unit.cached_end()) {
          store_shared_float(score(row_, begin - unit.begin + token, length), s * scale);
        }
      }
      ring.release();
    }
    if (unit.newest && active && member_ == 0) {
      float s = 0.0f;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const uint32_t k = newest(0) + static_cast<uint32_t>((c * kEach + e) * 4);
        s = fmaf(qa[e], load_shared_float(k), s);
        s = fmaf(qb[e], load_shared_float(k + kDim / 2 * 4), s);
      }
      s = over_eight(s);
      if (place_.lane == 0) store_shared_float(score(row_, length - 1, length), s * scale);
    }
    compute_barrier();

    float m = -INFINITY;
    const int row = min(row_, sharing_ - 1);
    for (int i = place_.lane; i < length; i += 32) {
      m = fmaxf(m, load_shared_float(score(row, i, length)));
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, lanes));
    const float base = m == -INFINITY ? 0.0f : m;
    float acc[kColumns] = {};
    float weight = 0.0f;
    for (int begin = unit.begin; begin < unit.cached_end(); begin += kStageTokens) {
      const uint32_t stage = ring.wait(index_);
      const int here = min(kStageTokens, unit.cached_end() - begin);
#pragma unroll 2
      for (int token = member_; token < here; token += team_) {
        const float p =
            exp2_fast(load_shared_float(score(row, begin - unit.begin + token, length)) - base);
        weight += p;
        add_values(acc, p, stage + static_cast<uint32_t>(token * kDim * 2));
      }
      ring.release();
    }
    if (unit.newest && member_ == 0) {
      const float p = exp2_fast(load_shared_float(score(row, length - 1, length)) - base);
      weight += p;
#pragma unroll
      for (int e = 0; e < kColumns; ++e) {
        acc[e] = fmaf(
            p,
            load_shared_float(newest(1) + static_cast<uint32_t>((place_.lane * kColumns + e) * 4)),
            acc[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kColumns; ++e) {
      store_shared_float(
          values(place_.warp) + static_cast<uint32_t>((place_.lane * kColumns + e) * 4), acc[e]);
    }
    if (place_.lane == 0) {
      store_shared_float(sum(place_.warp), weight);
      store_shared_float(most(place_.warp), m);
    }
    compute_barrier();
    store_part(unit);
    compute_barrier();  // before the next unit, or the next op, writes there
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

  // Two columns of a query head, by one thread each.
  __device__ __forceinline__ void store_part(const AttentionUnit& unit) const {
    disturb(args_, static_cast<uint32_t>(index_ * 64));
    if (args_.disturbance.withheld_op == index_) return;
    constexpr int kPairs = kDim / 2;
    for (int i = place_.thread(); i < sharing_ * kPairs; i += kComputeThreads) {
      const int row = i / kPairs, pair = i % kPairs;
      const int head = unit.head * sharing_ + row;
      float weight = 0.0f;
      float2 value = make_float2(0.0f, 0.0f);
      for (int w = row * team_; w < (row + 1) * team_; ++w) {
        weight += load_shared_float(sum(w));
        const uint2 v = load_shared_quad(values(w) + static_cast<uint32_t>(pair * 8));
        value.x += __uint_as_float(v.x);
        value.y += __uint_as_float(v.y);
      }
      if (unit.parts == 1) {
        store_attended(unit, head, pair, value, weight);
        continue;
      }
      Packet* const to = part_of(unit, head, unit.part);
      store_packets(to + pair * 2, __float_as_uint(value.x), __float_as_uint(value.y), epoch_);
      if (pair == 0) {
        const float m = load_shared_float(most(row * team_));
        store_packets(to + kDim, __float_as_uint(m), __float_as_uint(weight), epoch_);
      }
    }
    if (unit.parts == 1 && place_.thread() == 0) count_arrival(args_, kArrived + kAttention);
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

  // The parts of a head, in their order, a few at a time.
  __device__ __forceinline__ void combine(const AttentionUnit& unit) const {
    constexpr int kPairs = kDim / 2, kTogether = 4;
    for (int i = place_.thread(); i < sharing_ * kPairs; i += kComputeThreads) {
      const int head = unit.head * sharing_ + i / kPairs, pair = i % kPairs;
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
    __syncwarp();
    if (place_.thread() == 0) count_arrival(args_, kArrived + kAttention);
  }

  const Place& place_;
  const Args& args_;
  int index_;
  uint32_t epoch_;
  int sharing_, team_, member_, row_;
};

}  // namespace flexq_ft::step
