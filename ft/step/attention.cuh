// The attention of a step: every sequence's newest token over its paged cache, unit by unit
// (attention_units.cuh); the block of a head's first part adds the parts up in their order.
//
// K and V of the earlier tokens come through the ring, whose stages the teams take in turn; those
// of the newest one are in packets, and the block of the last part also writes them to the cache,
// for the steps to come. As many units as there is room for go through each phase together: what a
// phase costs is mostly waiting.
//
// Pages are multiplied on the tensor cores, with all query heads that share them at once, which are
// the eight columns of B and of the sums (mma.cuh):
//   scores: A is K, 16 tokens of a page; a warp takes whole pages, so that it needs no other's
//   sums. values: A is V transposed, 16 dimensions of a page; B are the exponentials.
// So that an exponential keeps (nearly) the precision of fp32 it is two values: itself rounded, and
// what the rounding left. A stage holds a page as boxes of 64 dimensions: [16 tokens][128 bytes],
// in which the 16-byte piece i of token r is at i ^ r % 8.
#pragma once

#include <type_traits>

#include "flexq_kernels/gpu/mma.cuh"
#include "flexq_kernels/gpu/tile_product.cuh"
#include "ft/kernels/attention_common.cuh"
#include "ft/kernels/rope.cuh"
#include "ft/step/attention_units.cuh"

namespace flexq_ft::step {

using flexq_kernels::gpu::load_matrices;
using flexq_kernels::gpu::load_matrices_transposed;
using gpu::exp2_fast;
using gpu::exponent_base;
using gpu::kMinusInfinity;

constexpr float kLog2E = 1.4426950408889634f;

template <typename T, int kDim>
class AttentionOp {
 public:
  static constexpr int kStageTokens = stage_tokens(kDim);
  static constexpr int kPairs = kDim / 2;
  static constexpr int kPartPackets = kDim + 2;
  static constexpr int kPageBytes = kPageTokens * kDim * 2;
  static constexpr int kBoxRows = kStageRows * kBoxBytes;  // bytes
  static constexpr int kSteps = kDim / 16;                 // of a product over a head
  static constexpr int kSums = value_sums(kDim);           // of each value, over tokens
  static constexpr int kSplits = kSums / kTeams;           // of a team's pages

  __device__ __forceinline__ AttentionOp(const Place& place, int index)
      : place_(place),
        args_(place.args),
        units_(place.args),
        index_(index),
        epoch_(place.epoch(index / kLayerOps)) {}

  __device__ __forceinline__ void run(RingReader& ring) const {
    const int count = units_.count(), together = args_.map.units_together;
#pragma unroll 1
    for (int first = 0; first < count; first += together) {
      const int here = min(together, count - first);
      receive_heads(first, here);
      compute_barrier();
      int turn = place_.member();  // pages of the team until this warp's next one
#pragma unroll 1
      for (int slot = 0; slot < here; ++slot) score(units_[first + slot], slot, turn, ring);
      compute_barrier();
      weigh_all(first, here);
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
  __device__ __forceinline__ int sharing() const { return args_.map.unit.sharing; }

  // ---- shared memory, where the products keep their operand ----

  __device__ __forceinline__ uint32_t at(int slot, int offset) const {
    return place_.at(args_.map.tokens + slot * args_.map.unit.bytes + offset);
  }
  __device__ __forceinline__ uint32_t query(int slot, int row) const {
    return at(slot, row * args_.map.unit.row);
  }
  // which: 0 K, 1 V.
  __device__ __forceinline__ uint32_t newest(int slot, int which) const {
    return at(slot, args_.map.unit.newest + which * args_.map.unit.row);
  }
  __device__ __forceinline__ uint32_t most(int slot, int row) const {
    return at(slot, args_.map.unit.most + row * 4);
  }
  __device__ __forceinline__ uint32_t sum(int slot, int row, int weighing, int length) const {
    return at(slot, args_.map.unit.sums + (row * weighings(length) + weighing) * 4);
  }
  __device__ __forceinline__ uint32_t top(int slot, int row, int warp) const {
    return at(slot, args_.map.unit.tops + (row * kWarps + warp) * 4);
  }
  // Of a unit's token. Exponentials of two neighbours, the first even: a pair of them, rounded, and
  // behind it what is left of them.
  __device__ __forceinline__ uint32_t score_at(int slot, int row, int token) const {
    return at(slot, args_.map.unit.scores + (row * args_.map.unit.pitch + token) * 4);
  }
  __device__ __forceinline__ uint32_t value(int slot, int which, int row, int dim) const {
    return at(slot, args_.map.unit.values + ((which * sharing() + row) * kDim + dim) * 4);
  }

  // ---- q, and K and V of the newest token ----

  // Heads of several units, one a warp.
  __device__ __forceinline__ void receive_heads(int first, int count) const {
    const int heads = sharing() + 2;
    for (int head = place_.warp, slot = 0;; head += kWarps) {
      for (; head >= heads; head -= heads) ++slot;
      if (slot >= count) break;
      const AttentionUnit& unit = units_[first + slot];
      if (head < sharing()) {
        if (place_.lane < kWarps) {
          store_shared_float(top(slot, head, place_.lane), kMinusInfinity);
        }
        receive_head(unit, unit.head * sharing() + head, true, query(slot, head), nullptr);
      } else if (unit.newest != 0) {
        const Op& op = place_.op(index_);
        const bool is_key = head == sharing();
        receive_head(unit, args_.heads + (is_key ? 0 : args_.kv_heads) + unit.head, is_key,
                     newest(slot, is_key ? 0 : 1),
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

  // ---- products ----

  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same_v<T, __half>) {
      flexq_kernels::gpu::mma_fp16(sums, a, b0, b1);
    } else {
      flexq_kernels::gpu::mma_bf16(sums, a, b0, b1);
    }
  }

  // Where a lane's row of a 16 x 16 matrix lies: token, and dims [16 step, 16 step + 8) or, of
  // `second`, the eight behind.
  static __device__ __forceinline__ uint32_t in_page(int token, int step, int second) {
    const int piece = step % 4 * 2 + second;
    return static_cast<uint32_t>(step / 4 * kBoxRows + token * kBoxBytes +
                                 ((piece ^ token % 8) * 16));
  }

  // ---- scores: q times K ----

  // The team's pages are dealt to its warps in turn.
  __device__ __forceinline__ void score(const AttentionUnit& unit, int slot, int& turn,
                                        RingReader& ring) const {
    const int lane = place_.lane, end = cached_end(unit);
    uint32_t q[kSteps / 2][4];  // of two steps each
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
      load_matrices(q[i], query(slot, min(lane % 8, sharing() - 1)) +
                              static_cast<uint32_t>(i * 64 + lane / 8 * 16));
    }
    float tops[2] = {kMinusInfinity, kMinusInfinity};  // of heads 2t and 2t + 1
    bool has = unit.newest != 0 && place_.warp == kWarps - 1 - slot % kTeamWarps;  // scores
    if (has) score_newest(unit, slot, q, tops);
#pragma unroll 1
    for (int begin = unit.begin + ring.ahead() * kStageTokens; begin < end;
         begin += kTeams * kStageTokens) {
      const uint32_t stage = ring.wait(index_);
      const int here = min(kStageTokens, end - begin);
      const int pages = (here + kPageTokens - 1) / kPageTokens;
      if (turn < pages) {
        const uint32_t page = stage + static_cast<uint32_t>(turn * kPageBytes);
        float sums[4][4] = {};  // a product need not wait for the last one
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          uint32_t k[4];
          load_matrices(k, page + in_page(lane % 16, i, lane / 16));
          multiply(sums[i % 4], k, q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
        }
        const int token = turn * kPageTokens;
        store_scores(slot, begin - unit.begin + token, here - token, sums, tops);
        has = true;
      }
      turn = (turn + kTeamWarps - pages) % kTeamWarps;
      ring.release();
    }
    ring.pass(stages_of(unit));
    if (has) store_tops(slot, tops);
  }

  // As the first token of a page that has no other.
  __device__ __forceinline__ void score_newest(const AttentionUnit& unit, int slot,
                                               const uint32_t (&q)[kSteps / 2][4],
                                               float (&tops)[2]) const {
    const uint32_t from = newest(slot, 0) + static_cast<uint32_t>(place_.lane % 4 * 4);
    float sums[4][4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t k[4] = {};
      if (place_.lane < 4) {
        k[0] = load_shared_word(from + i * 32);
        k[2] = load_shared_word(from + i * 32 + 16);
      }
      multiply(sums[i % 4], k, q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
    }
    store_scores(slot, unit.end - 1 - unit.begin, 1, sums, tops);
  }

  // Of 16 tokens from `token` of the unit on, of which there are `count`, as exponents of 2.
  __device__ __forceinline__ void store_scores(int slot, int token, int count,
                                               const float (&sums)[4][4], float (&tops)[2]) const {
    const float scale = kLog2E / sqrtf(static_cast<float>(kDim));
    const int row = place_.lane / 4, head = place_.lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i / 2 * 8, h = head + i % 2;
      if (r >= count) continue;
      const float s = ((sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i])) * scale;
      tops[i % 2] = fmaxf(tops[i % 2], s);
      if (h < sharing()) store_shared_float(score_at(slot, h, token + r), s);
    }
  }

  __device__ __forceinline__ void store_tops(int slot, float (&tops)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        tops[i] = fmaxf(tops[i], __shfl_xor_sync(kAllLanes, tops[i], lanes));
      }
      const int head = place_.lane * 2 + i;
      if (head < sharing()) store_shared_float(top(slot, head, place_.warp), tops[i]);
    }
  }

  static __device__ __forceinline__ int stages_of(const AttentionUnit& unit) {
    return max(cached_end(unit) - unit.begin + kStageTokens - 1, 0) / kStageTokens;
  }

  // ---- exponentials, and their sums ----

  __device__ __forceinline__ void weigh_all(int first, int count) const {
    const int row_bits = args_.map.unit.row_bits;
#pragma unroll 1
    for (int i = place_.warp, slot = 0; slot < count; ++slot) {
      const AttentionUnit& unit = units_[first + slot];
      const int all = weighings(unit.end - unit.begin) << row_bits;
#pragma unroll 1
      for (; i < all; i += kWarps) {
        const int row = i & ((1 << row_bits) - 1);
        if (row < sharing()) weigh(unit, slot, row, i >> row_bits);
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
      const uint4 words = flexq_kernels::gpu::load_shared_words(top(slot, row, i));
      m = fmaxf(m, fmaxf(fmaxf(__uint_as_float(words.x), __uint_as_float(words.y)),
                         fmaxf(__uint_as_float(words.z), __uint_as_float(words.w))));
    }
    const float base = exponent_base(m);
    const int end = min((length + kPageTokens - 1) / kPageTokens * kPageTokens,
                        (weighing + 1) * kWeighedTokens);
    float weight = 0.0f;
    for (int token = weighing * kWeighedTokens + place_.lane * 2; token < end; token += 64) {
      const uint32_t there = score_at(slot, row, token);
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
    store_shared_float(sum(slot, row, weighing, length), weight);
    if (weighing == 0) store_shared_float(most(slot, row), m);
  }

  // ---- values: those of the cached tokens, by weight ----

  // A warp takes 16 dimensions; where there are more warps than that, every second page.
  __device__ __forceinline__ void add_up(const AttentionUnit& unit, int slot,
                                         RingReader& ring) const {
    const int lane = place_.lane, g = lane / 4, t = lane % 4;
    const int end = cached_end(unit), first = ring.ahead();
    const int split = kSplits == 1 ? 0 : place_.member() / kSteps;
    const int dims = place_.member() % kSteps;
    const auto in = in_page(lane % 8 + lane / 16 * 8, dims, lane / 8 % 2);
    float sums[4] = {}, rests[4] = {};
#pragma unroll 1
    for (int begin = unit.begin + first * kStageTokens; begin < end;
         begin += kTeams * kStageTokens) {
      const uint32_t stage = ring.wait(index_) + in;
      const int here = min(kStageTokens, end - begin);
      const uint32_t weights = score_at(slot, min(g, sharing() - 1), begin - unit.begin + 2 * t);
#pragma unroll
      for (int i = split; i < kStageTokens / kPageTokens; i += kSplits) {
        const int count = here - i * kPageTokens;
        if (count <= 0) break;
        uint32_t v[4];
        load_matrices_transposed(v, stage + static_cast<uint32_t>(i * kPageBytes));
        if (count < kPageTokens) forget_behind(v, count);
        const uint2 low = load_shared_quad(weights + i * kPageTokens * 4);
        const uint2 high = load_shared_quad(weights + i * kPageTokens * 4 + 32);
        multiply(sums, v, low.x, high.x);
        multiply(rests, v, low.y, high.y);
      }
      ring.release();
    }
    ring.pass(stages_of(unit));
    // In an order that does not depend on which team took the first stage.
    const int which = first * kSplits + split;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * t + i % 2;
      if (row >= sharing()) continue;
      store_shared_float(value(slot, which, row, dims * 16 + g + i / 2 * 8), sums[i] + rests[i]);
    }
  }

  // Of a page's values those behind its first `count` tokens, which may be anything.
  __device__ __forceinline__ void forget_behind(uint32_t (&v)[4], int count) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int left = count - (2 * (place_.lane % 4) + i / 2 * 8);
      v[i] &= left >= 2 ? ~0u : left == 1 ? 0xffffu : 0u;
    }
  }

  // ---- results ----

  // Two columns of a query head, by one thread each, of units side by side.
  __device__ __forceinline__ void store_parts(int first, int count) const {
    disturb(args_, static_cast<uint32_t>(index_ * 64 + first));
    if (args_.disturbance.withheld_op == index_) return;
    const int row_bits = args_.map.unit.row_bits;
    for (int i = place_.thread(); i < (count * kPairs) << row_bits; i += kComputeThreads) {
      const int pair = i % kPairs, row = i / kPairs & ((1 << row_bits) - 1);
      const int slot = i / kPairs >> row_bits;
      if (row >= sharing()) continue;
      const AttentionUnit& unit = units_[first + slot];
      const int head = unit.head * sharing() + row;
      float weight = 0.0f;
      const int length = unit.end - unit.begin;
      for (int w = 0; w < weighings(length); ++w) {
        weight += load_shared_float(sum(slot, row, w, length));
      }
      float2 result = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int w = 0; w < kSums; ++w) {
        const uint2 v = load_shared_quad(value(slot, w, row, pair * 2));
        result.x += __uint_as_float(v.x);
        result.y += __uint_as_float(v.y);
      }
      if (unit.newest != 0) add_newest(result, unit, slot, row, pair);
      if (unit.parts == 1) {
        store_attended(unit, head, pair, result, weight);
        if (pair == 0 && row == 0) count_arrival(args_, kArrived + kAttention);
        continue;
      }
      Packet* const to = part_of(unit, head, unit.part);
      store_packets(to + pair * 2, __float_as_uint(result.x), __float_as_uint(result.y), epoch_);
      if (pair == 0) {
        const float m = load_shared_float(most(slot, row));
        store_packets(to + kDim, __float_as_uint(m), __float_as_uint(weight), epoch_);
      }
    }
  }

  __device__ __forceinline__ void add_newest(float2& result, const AttentionUnit& unit, int slot,
                                             int row, int pair) const {
    const int token = unit.end - 1 - unit.begin;
    const uint2 weights = load_shared_quad(score_at(slot, row, token / 2 * 2));
    const float2 kept = unpack_pair<T>(weights.x), rest = unpack_pair<T>(weights.y);
    const float p = token % 2 == 0 ? kept.x + rest.x : kept.y + rest.y;
    const float2 v =
        unpack_pair<T>(load_shared_word(newest(slot, 1) + static_cast<uint32_t>(pair * 4)));
    result.x = fmaf(p, v.x, result.x);
    result.y = fmaf(p, v.y, result.y);
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
    const int row_bits = args_.map.unit.row_bits;
    for (int i = place_.thread(); i < (count * kPairs) << row_bits; i += kComputeThreads) {
      const int pair = i % kPairs, row = i / kPairs & ((1 << row_bits) - 1);
      const AttentionUnit& unit = units_[i / kPairs >> row_bits];
      if (row >= sharing() || unit.part != 0 || unit.parts == 1) continue;
      combine_pair(unit, unit.head * sharing() + row, pair);
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
};

}  // namespace flexq_ft::step
