// The operand of a product, made by every block for itself from the packets of the op before:
// normed, rounded to the compute type, quantised where the format says so, in shared memory.
//
//   kFloat, kW8A16   16-bit values, k ascending
//   kW8A8            int8 codes, k ascending, one scale per token
//   kW6              int8 codes of groups of 128 in fragment order, a quarter of a scale per token
//                    and group
//
// Each warp takes whole groups of 128 of one token, the warps of a token in turn. Sums over a token
// are sums of its groups' sums in their order: they do not depend on how many tokens there are.
#pragma once

#include "flexq_kernels/activation_order.h"
#include "flexq_kernels/gpu/quantize.cuh"
#include "ft/step/pair.cuh"

namespace flexq_ft::step {

using flexq_kernels::gpu::group_inverse;
using flexq_kernels::gpu::group_scale;
using flexq_kernels::gpu::magnitude_bits;
using flexq_kernels::gpu::quantized;

// Which groups of which token a warp takes: groups part, part + parts, … of `token`.
struct TokenShare {
  int token, part, parts;
  bool active;

  template <int kTokens>
  static __device__ __forceinline__ TokenShare of(int warp, const Args& args,
                                                  const Pair<kTokens>& pair) {
    if constexpr (kTokens == 1) return {0, warp, kWarps, true};
    const int step = pair.exists() ? 2 : 1, first = pair.exists() ? pair.rank() : 0;
    const int tokens = pair.exists() ? pair.tokens(first) : args.tokens;
    const int bucket = tokens <= 1 ? 1 : tokens <= 2 ? 2 : tokens <= 4 ? 4 : 8;
    const int token = warp & (bucket - 1);
    return {first + token * step, warp / bucket, kWarps / bucket, token < tokens};
  }
  __device__ __forceinline__ int units(int groups) const {
    return active && part < groups ? (groups - part + parts - 1) / parts : 0;
  }
  __device__ __forceinline__ int group(int unit) const { return part + unit * parts; }
};

__device__ __forceinline__ uint32_t quad_codes(const float (&x)[4], float inverse, int limit) {
  uint32_t word = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    word |= (static_cast<uint32_t>(quantized(x[e], inverse, limit)) & 0xffu) << (8 * e);
  }
  return word;
}

__device__ __forceinline__ uint32_t quad_magnitude(const float (&x)[4]) {
  return static_cast<uint32_t>(max(max(magnitude_bits(x[0]), magnitude_bits(x[1])),
                                   max(magnitude_bits(x[2]), magnitude_bits(x[3]))));
}

// W8A8: where the scales of an op's tokens are. Of the op before they may still be read, by the
// finishing warp, when the peer writes new ones.
__device__ __forceinline__ int scale_row(int kind) { return kind == kO || kind == kDown ? 1 : 0; }

template <typename T, Format kFormat, int kTokens>
class TokenInput {
 public:
  static constexpr bool kCodes = kFormat == Format::kW8A8 || kFormat == Format::kW6;

  __device__ __forceinline__ TokenInput(const Place& place, int index, int kind,
                                        Pair<kTokens>& pair)
      : place_(place),
        args_(place.args),
        op_(place.op(index)),
        index_(index),
        k_(op_.k),
        groups_((op_.k + kGroup - 1) / kGroup),
        pair_(pair),
        scale_row_(kFormat == Format::kW8A8 ? scale_row(kind) : 0),
        share_(TokenShare::of(place.warp, args_, pair)) {}

  // The operand from the packets of `source`, [tokens, k / 2]. Ends with a barrier.
  __device__ __forceinline__ void gather(const Packet* source, uint32_t epoch) {
    // Loads in flight of a warp: rows of usual sizes in one round trip.
    if (share_.units(groups_) <= 3) {
      gather_in<3>(source, epoch);
    } else {
      gather_in<kMostLoads>(source, epoch);
    }
  }

  // The same behind a norm, whose weights are the next stages of the ring.
  __device__ __forceinline__ void gather_normed(const Packet* source, uint32_t epoch,
                                                RingReader& ring) {
    gather_normed_in<kTokens == 1 ? 4 : kMostLoads>(source, epoch, ring);
  }

 private:
  __device__ __forceinline__ void begin() const {
    const int each = kFormat == Format::kW6     ? groups_ * (kGroup + 4)
                     : kFormat == Format::kW8A8 ? groups_ * kGroup + 4
                                                : groups_ * kGroup * 2;
    pair_.begin(pair_.tokens(pair_.rank() ^ 1) * each, share_.units(groups_) > 0, index_);
  }

  static constexpr int kMostLoads = kTokens == 1 ? 6 : 5;  // more, and registers do not suffice

  template <int kBatch>
  __device__ __forceinline__ void gather_in(const Packet* source, uint32_t epoch) {
    const int units = share_.units(groups_);
    uint32_t most = 0;
    begin();
    for (int first = 0; first < units; first += kBatch) {
      uint2 quads[kBatch];
      receive_batch(quads, source, epoch, first, units);
      put(quads, first, units, most);
    }
    finish(most);
  }

  template <int kBatch>
  __device__ __forceinline__ void gather_normed_in(const Packet* source, uint32_t epoch,
                                                   RingReader& ring) {
    const int units = share_.units(groups_);
    const bool layer = args_.layer_norm;
    begin();
    for (int first = 0; first < units; first += kBatch) {
      uint2 quads[kBatch];
      receive_batch(quads, source, epoch, first, units);
      float sums[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        float x[4];
        unpack_quad<T>(x, quads[i]);
        sums[i] = 0.0f;
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i] = layer ? sums[i] + x[e] : fmaf(x[e], x[e], sums[i]);
        if (first + i < units) store_shared_quad(raw(share_.group(first + i)), quads[i]);
      }
      put_sums(sums, first, units, 0);
    }
    await_norm(ring);
    compute_barrier();
    float mean = 0.0f;
    float squares = total(0);
    if (layer) {
      mean = squares / static_cast<float>(k_);
      for (int first = 0; first < units; first += kBatch) {
        float sums[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int group = share_.group(min(first + i, units - 1));
          float x[4];
          unpack_quad<T>(x, load_shared_quad(raw(group)));
          sums[i] = 0.0f;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float v = inside(group) ? x[e] - mean : 0.0f;
            sums[i] = fmaf(v, v, sums[i]);
          }
        }
        put_sums(sums, first, units, 1);
      }
      compute_barrier();
      squares = total(1);
    }
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(k_) + args_.eps);
    uint32_t most = 0;
    constexpr int kStageGroups = kNormValues / kGroup;
    int unit = 0, stage = 0;
    for (int begin = 0; begin < groups_; begin += kStageGroups) {
      const uint32_t weight = ring.peek(stage++);
      const uint32_t bias = layer ? ring.peek(stage++) : weight;
      const int here = min(share_.units(min(groups_, begin + kStageGroups)), units);
      for (; unit < here; unit += kBatch) {
        uint2 quads[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int group = share_.group(min(unit + i, here - 1));
          const auto in_stage = static_cast<uint32_t>(((group - begin) * 32 + place_.lane) * 8);
          float x[4], w[4], b[4];
          unpack_quad<T>(x, load_shared_quad(raw(group)));
          unpack_quad<T>(w, load_shared_quad(weight + in_stage));
          unpack_quad<T>(b, load_shared_quad(bias + in_stage));
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float v = (x[e] - mean) * scale;
            x[e] = layer ? fmaf(v, w[e], b[e]) : v * w[e];
          }
          quads[i] = pack_quad<T>(x);
          if (!inside(group)) quads[i] = make_uint2(0, 0);
        }
        put(quads, unit, here, most);
      }
      unit = here;
    }
    finish(most);
    for (int i = ring.ahead(); i < stage; i += kTeams) ring.release();
    ring.pass(stage);
  }

  // The team's stages of the norm's weights have arrived.
  __device__ __forceinline__ void await_norm(RingReader ring) const {
    const int stages = (k_ + kNormValues - 1) / kNormValues * (args_.layer_norm ? 2 : 1);
    for (int i = ring.ahead(); i < stages; i += kTeams) {
      ring.wait(index_);
      ring.advance();
    }
  }
  __device__ __forceinline__ bool inside(int group) const {
    return group * kGroup + place_.lane * 4 < k_;
  }
  __device__ __forceinline__ uint32_t raw(int group) const {
    // Of formats without codes the raw values are the operand.
    const SharedMap& map = args_.map;
    const int row = (kCodes ? map.raw : map.tokens) + share_.token * map.token_pitch;
    return place_.at(row) + static_cast<uint32_t>((group * 32 + place_.lane) * 8);
  }
  __device__ __forceinline__ uint32_t operand() const {
    return place_.at(args_.map.tokens + share_.token * args_.map.token_pitch);
  }

  template <int kBatch>
  __device__ __forceinline__ void receive_batch(uint2 (&quads)[kBatch], const Packet* source,
                                                uint32_t epoch, int first, int units) const {
    const Packet* const row = source + static_cast<int64_t>(share_.token) * (k_ / 2);
    receive(
        quads,
        [&](int i) { return row + share_.group(first + i) * (kGroup / 2) + place_.lane * 2; },
        [&](int i) { return first + i < units && inside(share_.group(first + i)); }, epoch,
        Patience(args_, index_, false));
  }

  __device__ __forceinline__ uint32_t sum_at(int which, int group) const {
    const int rows = which * args_.tokens + share_.token;
    return place_.at(args_.map.sums + (rows * args_.map.group_limit + group) * 4);
  }
  template <int kBatch>
  __device__ __forceinline__ void put_sums(float (&sums)[kBatch], int first, int units,
                                           int which) const {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) sums[i] += __shfl_xor_sync(kAllLanes, sums[i], lanes);
    }
    if (place_.lane != 0) return;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i < units) store_shared_float(sum_at(which, share_.group(first + i)), sums[i]);
    }
  }
  __device__ __forceinline__ float total(int which) const {
    float sum = 0.0f;
    if (share_.active) {
      for (int g = place_.lane; g < groups_; g += 32) sum += load_shared_float(sum_at(which, g));
    }
    return warp_sum(sum);
  }

  // Values of units [first, first + kBatch), rounded to the compute type; those outside the row are
  // 0. `most`: of W8A8, the largest magnitude so far.
  template <int kBatch>
  __device__ __forceinline__ void put(const uint2 (&quads)[kBatch], int first, int units,
                                      uint32_t& most) const {
    if constexpr (kFormat == Format::kW6) {
      put_groups(quads, first, units);
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i >= units) continue;
        store_shared_quad(raw(share_.group(first + i)), quads[i]);
        if constexpr (!kCodes) pair_.send(raw(share_.group(first + i)), quads[i]);
        if constexpr (kFormat == Format::kW8A8) {
          float x[4];
          unpack_quad<T>(x, quads[i]);
          most = max(most, quad_magnitude(x));
        }
      }
    }
  }

  // Lane i divides for unit i: divisions are slow.
  template <int kBatch>
  __device__ __forceinline__ void put_groups(const uint2 (&quads)[kBatch], int first,
                                             int units) const {
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      float x[4];
      unpack_quad<T>(x, quads[i]);
      const uint32_t bits = __reduce_max_sync(kAllLanes, quad_magnitude(x));
      if (place_.lane == i) mine = bits;
    }
    const int limit = op_.limit;
    const float inverse = group_inverse(static_cast<int>(mine), limit);
    if (place_.lane < kBatch && first + place_.lane < units) {
      // A quarter of it: the products are those of fourfold weights (int6.cuh).
      store_scale(share_.group(first + place_.lane),
                  0.25f * group_scale(static_cast<int>(mine), limit));
    }
    const int word = flexq_kernels::fragment_word(place_.lane);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float of_unit = __shfl_sync(kAllLanes, inverse, i);
      if (first + i >= units) continue;
      float x[4];
      unpack_quad<T>(x, quads[i]);
      store_codes(share_.group(first + i) * kGroup + word * 4, quad_codes(x, of_unit, limit));
    }
  }

  __device__ __forceinline__ void store_codes(int at, uint32_t codes) const {
    const uint32_t to = operand() + static_cast<uint32_t>(at);
    store_shared_word(to, codes);
    pair_.send(to, codes);
  }
  __device__ __forceinline__ void store_scale(int group, float scale) const {
    const uint32_t to =
        place_.at(args_.map.scales + (group * args_.map.scale_tokens + share_.token) * 4);
    store_shared_float(to, scale);
    pair_.send(to, __float_as_uint(scale));
  }

  __device__ __forceinline__ void finish(uint32_t most) const {
    if constexpr (kFormat == Format::kW8A8) {
      const uint32_t maximum = place_.at(args_.map.maxima + share_.token * 4);
      most = __reduce_max_sync(kAllLanes, most);
      if (place_.lane == 0 && share_.active) {
        asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(maximum), "r"(most) : "memory");
      }
      compute_barrier();
      const int bits = static_cast<int>(load_shared_word(maximum));
      const float inverse = group_inverse(bits, op_.limit);
      const int units = share_.units(groups_);
#pragma unroll 4
      for (int unit = 0; unit < units; ++unit) {
        const int group = share_.group(unit);
        float x[4];
        unpack_quad<T>(x, load_shared_quad(raw(group)));
        store_codes(group * kGroup + place_.lane * 4, quad_codes(x, inverse, op_.limit));
      }
      if (share_.active && share_.part == 0 && place_.lane == 0) {
        store_scale(scale_row_, group_scale(bits, op_.limit));
      }
    }
    compute_barrier();
    pair_.end(index_);
  }

  const Place& place_;
  const Args& args_;
  const Op& op_;
  int index_;
  int k_, groups_;
  Pair<kTokens>& pair_;
  int scale_row_;
  TokenShare share_;
};

}  // namespace flexq_ft::step
