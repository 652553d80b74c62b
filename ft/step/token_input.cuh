// The operand of a product, made by every block for itself from the packets of the op before:
// rounded to the compute type, quantised where the format says so, in shared memory. Behind a norm:
// normed_input.cuh.
//
//   kFloat, kW8A16   16-bit values, k ascending
//   kW8A8            int8 codes, k ascending, one scale per token
//   kW6              int8 codes of groups of 128 in fragment order, a quarter of a scale per token
//                    and group
//
// Each warp takes whole groups of 128 of one token, the warps of a token in turn. While operands
// are made nothing is multiplied: instructions count, and all packets of a warp are asked for at
// once.
#pragma once

#include "flexq_kernels/activation_order.h"
#include "flexq_kernels/gpu/quantize.cuh"
#include "ft/step/pair.cuh"

namespace flexq_ft::step {

using flexq_kernels::gpu::group_inverse;
using flexq_kernels::gpu::group_scale;

// Which groups of which token a warp takes: groups part, part + parts, … of `token`.
struct TokenShare {
  int token, part, shift;  // parts: 2^shift
  int tokens;              // of the step

  template <int kTokens>
  static __device__ __forceinline__ TokenShare of(int warp, const Args& args,
                                                  const Pair<kTokens>& pair) {
    static_assert(kWarps == 16);
    if constexpr (kTokens == 1) return {0, warp, 4, args.tokens};
    const int step = pair.exists() ? 2 : 1, first = pair.exists() ? pair.rank() : 0;
    const int tokens = pair.exists() ? pair.tokens(first) : args.tokens;
    const int bits = tokens <= 1 ? 0 : tokens <= 2 ? 1 : tokens <= 4 ? 2 : 3;
    const int token = first + (warp & ((1 << bits) - 1)) * step;
    return {token, warp >> bits, 4 - bits, args.tokens};
  }
  // Is there such a token?
  __device__ __forceinline__ bool active() const { return anew(token) < tokens; }
  // How many of so many groups.
  __device__ __forceinline__ int units(int groups) const {
    return active() && part < groups ? (groups - part + (1 << shift) - 1) >> shift : 0;
  }
  __device__ __forceinline__ int group(int unit) const { return part + (unit << shift); }
};

// The largest magnitude of four values, as the bits of a float; above infinity's if one is NaN.
__device__ __forceinline__ uint32_t quad_magnitude(const float (&x)[4]) {
  const auto larger = [](float a, float b) {
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(fabsf(a)), "f"(fabsf(b)));
    return most;
  };
  return __float_as_uint(larger(larger(x[0], x[1]), larger(x[2], x[3])));
}

// Codes of four values of a group that `inverse` is of: those of quantized(), whose limits no such
// product passes. The integer nearest to a float is in the low bits of its sum with 1.5 * 2^23.
__device__ __forceinline__ uint32_t quad_codes(const float (&x)[4], float inverse) {
  uint32_t biased[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    biased[e] = __float_as_uint(__fadd_rn(__fmul_rn(x[e], inverse), 12582912.0f));
  }
  const uint32_t codes = __byte_perm(__byte_perm(biased[0], biased[1], 0x0040),
                                     __byte_perm(biased[2], biased[3], 0x0040), 0x5410);
  return inverse == 0.0f ? 0 : codes;  // x may be NaN
}

// W8A8: where the scales of an op's tokens are. Those of the op before may still be read, by the
// finishing warp, when the peer writes new ones; those of two ops before not: what the peer sends
// depends on everything that this warp has published of them.
__device__ __forceinline__ int scale_row(int kind) { return kind == kO || kind == kDown ? 1 : 0; }

template <typename T, Format kFormat, int kTokens>
class TokenInput {
 public:
  static constexpr bool kCodes = kFormat == Format::kW8A8 || kFormat == Format::kW6;

  __device__ __forceinline__ TokenInput(const Place& place, int index, Pair<kTokens>& pair)
      : place_(place),
        args_(place.args),
        index_(index),
        k_(place.op(index).k),
        groups_((k_ + kGroup - 1) / kGroup),
        pair_(pair),
        share_(TokenShare::of(place.warp, args_, pair)),
        units_(share_.units(groups_)) {}

  // The operand from the packets of `source`, [tokens, k / 2]. Ends with a barrier.
  __device__ __forceinline__ void gather(const Packet* source, uint32_t epoch) {
    if (units_ <= 2) {
      gather_in<2>(source, epoch);
    } else if (units_ <= 4) {
      gather_in<4>(source, epoch);
    } else {
      gather_in<kMostLoads>(source, epoch);
    }
  }

 protected:
  // Units whose packets a warp asks for at once: for more, registers do not suffice.
  static constexpr int kMostLoads = kTokens == 1 ? 6 : 5;

  __device__ __forceinline__ void begin() const {
    const int each = kFormat == Format::kW6     ? groups_ * (kGroup + 4)
                     : kFormat == Format::kW8A8 ? groups_ * kGroup + 4
                                                : groups_ * kGroup * 2;
    pair_.begin(pair_.tokens(pair_.rank() ^ 1) * each, units_ > 0, index_);
  }

  // The lane's first value of a unit, and whether it is of the row: not so of units past the last.
  __device__ __forceinline__ int value(int unit) const {
    return share_.group(unit) * kGroup + place_.lane * 4;
  }
  __device__ __forceinline__ bool inside(int unit) const { return value(unit) < anew(k_); }

  // Values outside the row are zeros.
  template <int kBatch>
  __device__ __forceinline__ void receive_batch(uint2 (&quads)[kBatch], const Packet* source,
                                                uint32_t epoch, int first) const {
    const Packet* const row = source + static_cast<int64_t>(share_.token) * (k_ / 2);
    receive(
        quads, [&](int i) { return row + value(first + i) / 2; },
        [&](int i) { return share_.active() && inside(first + i); }, epoch,
        Patience(args_, index_, false));
  }

  // Values of units [first, first + kBatch), as far as there are such, rounded to the compute type.
  // `most`: of W8A8, the largest magnitude so far.
  template <int kBatch>
  __device__ __forceinline__ void put(const uint2 (&quads)[kBatch], int first,
                                      uint32_t& most) const {
    if constexpr (kFormat == Format::kW6) {
      put_groups(quads, first);
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i >= units_) continue;
        store_shared_quad(raw(first + i), quads[i]);
        if constexpr (!kCodes) pair_.send(raw(first + i), quads[i]);
        if constexpr (kFormat == Format::kW8A8) {
          float x[4];
          unpack_quad<T>(x, quads[i]);
          most = max(most, quad_magnitude(x));
        }
      }
    }
  }

  // Where a unit's values are kept until they are quantised; of formats without codes they are the
  // operand.
  __device__ __forceinline__ uint32_t raw(int unit) const {
    const SharedMap& map = args_.map;
    const int row = (kCodes ? map.raw : map.tokens) + share_.token * map.token_pitch;
    return place_.at(row + value(unit) * 2);
  }

  // scales: the scale_row() of the op.
  __device__ __forceinline__ void finish(uint32_t most, int scales) const {
    if constexpr (kFormat == Format::kW8A8) {
      const uint32_t maximum = place_.at(args_.map.maxima + share_.token * 4);
      most = __reduce_max_sync(kAllLanes, most);
      if (place_.lane == 0 && share_.active()) {
        asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(maximum), "r"(most) : "memory");
      }
      compute_barrier();
      const int bits = static_cast<int>(load_shared_word(maximum));
      const int limit = this->limit();
      const float inverse = group_inverse(bits, limit);
#pragma unroll 4
      for (int unit = 0; unit < units_; ++unit) {
        float x[4];
        unpack_quad<T>(x, load_shared_quad(raw(unit)));
        store_codes(value(unit), quad_codes(x, inverse));
      }
      if (share_.active() && share_.part == 0 && place_.lane == 0) {
        store_scale(scales, group_scale(bits, limit));
      }
    }
    compute_barrier();
    pair_.end(index_);
  }

 private:
  // The largest code.
  __device__ __forceinline__ int limit() const { return place_.op(index_).limit; }

  template <int kBatch>
  __device__ __forceinline__ void gather_in(const Packet* source, uint32_t epoch) {
    uint32_t most = 0;
    begin();
#pragma unroll 1
    for (int first = 0; first < units_; first += kBatch) {
      uint2 quads[kBatch];
      receive_batch(quads, source, epoch, first);
      put(quads, first, most);
    }
    finish(most, scale_row(kDown));  // or kO
  }

  // Lane i divides for unit i: divisions are slow.
  template <int kBatch>
  __device__ __forceinline__ void put_groups(const uint2 (&quads)[kBatch], int first) const {
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      float x[4];
      unpack_quad<T>(x, quads[i]);
      const uint32_t bits = __reduce_max_sync(kAllLanes, quad_magnitude(x));
      if (place_.lane == i) mine = bits;
    }
    const int limit = this->limit();
    const float inverse = group_inverse(static_cast<int>(mine), limit);
    if (place_.lane < kBatch && first + place_.lane < units_) {
      // A quarter of it: the products are those of fourfold weights (int6.cuh).
      store_scale(share_.group(first + place_.lane),
                  0.25f * group_scale(static_cast<int>(mine), limit));
    }
    const int word = flexq_kernels::fragment_word(place_.lane);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float of_unit = __shfl_sync(kAllLanes, inverse, i);
      if (first + i >= units_) continue;
      float x[4];
      unpack_quad<T>(x, quads[i]);
      store_codes(share_.group(first + i) * kGroup + word * 4, quad_codes(x, of_unit));
    }
  }

  __device__ __forceinline__ void store_codes(int at, uint32_t codes) const {
    const uint32_t to = place_.at(args_.map.tokens + share_.token * args_.map.token_pitch + at);
    store_shared_word(to, codes);
    pair_.send(to, codes);
  }
  __device__ __forceinline__ void store_scale(int group, float scale) const {
    const uint32_t to =
        place_.at(args_.map.scales + (group * args_.map.scale_tokens + share_.token) * 4);
    store_shared_float(to, scale);
    pair_.send(to, __float_as_uint(scale));
  }

 protected:
  const Place& place_;
  const Args& args_;
  int index_;
  int k_, groups_;
  Pair<kTokens>& pair_;

  TokenShare share_;
  int units_;  // of the warp
};

}  // namespace flexq_ft::step
