// The operand of a product behind a norm, whose weights are the next stages of the ring: the
// residual stream, normed and rounded, becomes the operand as token_input.cuh says.
//
// Sums over a token are sums of its groups' sums in a fixed order, whatever the number of tokens.
// Between a norm's sums and its values a warp keeps its packets' values in registers, or, where a
// row has more for it than there is room, in shared memory.
#pragma once

#include "ft/step/ring.cuh"
#include "ft/step/token_input.cuh"

namespace flexq_ft::step {

template <typename T, Format kFormat, int kTokens>
class NormedInput : private TokenInput<T, kFormat, kTokens> {
 public:
  __device__ __forceinline__ NormedInput(const Place& place, int index, Pair<kTokens>& pair,
                                         RingReader& ring)
      : Input(place, index, pair), ring_(ring) {}

  // From the packets of `source`, [tokens, k / 2]. Ends with a barrier.
  __device__ __forceinline__ void gather(const Packet* source, uint32_t epoch) {
    this->begin();
    if (units_ <= 2) {
      in_registers<2>(source, epoch);
    } else if (units_ <= 4) {
      in_registers<4>(source, epoch);
    } else {
      in_memory(source, epoch);
    }
  }

 private:
  using Input = TokenInput<T, kFormat, kTokens>;
  using Input::args_;
  using Input::groups_;
  using Input::k_;
  using Input::place_;
  using Input::share_;
  using Input::units_;

  static constexpr int kBatch = 4;  // units of a warp at a time, in memory

  template <int kUnits>
  __device__ __forceinline__ void in_registers(const Packet* source, uint32_t epoch) {
    uint2 quads[kUnits];
    this->receive_batch(quads, source, epoch, 0);
    put_sums(quads, 0, 0, 0.0f);
    Norm norm{0.0f, total(0)};
    if (layer()) {
      norm.mean = divided(norm.scale);
      put_sums(quads, 0, 1, norm.mean);
      norm.scale = total(1);
    }
    norm.scale = rsqrtf(divided(norm.scale) + args_.eps);
    uint32_t most = 0;
    apply(quads, 0, norm);
    this->put(quads, 0, most);
    this->finish(most, scale_row(kQkv));  // or kUp, or kHead
    release();
  }

  __device__ __forceinline__ void in_memory(const Packet* source, uint32_t epoch) {
    uint2 quads[kBatch];
#pragma unroll 1
    for (int first = 0; first < units_; first += kBatch) {
      this->receive_batch(quads, source, epoch, first);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < units_) store_shared_quad(this->raw(first + i), quads[i]);
      }
      put_sums(quads, first, 0, 0.0f);
    }
    Norm norm{0.0f, total(0)};
    if (layer()) {
      norm.mean = divided(norm.scale);
#pragma unroll 1
      for (int first = 0; first < units_; first += kBatch) {
        load(quads, first);
        put_sums(quads, first, 1, norm.mean);
      }
      norm.scale = total(1);
    }
    norm.scale = rsqrtf(divided(norm.scale) + args_.eps);
    uint32_t most = 0;
#pragma unroll 1
    for (int first = 0; first < units_; first += kBatch) {
      load(quads, first);
      apply(quads, first, norm);
      this->put(quads, first, most);
    }
    this->finish(most, scale_row(kQkv));  // or kUp, or kHead
    release();
  }

  __device__ __forceinline__ void load(uint2 (&quads)[kBatch], int first) const {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      quads[i] = load_shared_quad(this->raw(min(first + i, units_ - 1)));
    }
  }

  __device__ __forceinline__ bool layer() const { return args_.layer_norm; }

  __device__ __forceinline__ float divided(float sum) const {
    return __fdividef(sum, static_cast<float>(k_));
  }

  // ---- sums ----
  // which 0: of an RMS norm the squares, of a layer norm the values; 1: the squares around the
  // mean.

  __device__ __forceinline__ uint32_t sum_at(int which, int group) const {
    const int rows = which * args_.tokens + share_.token;
    return place_.at(args_.map.sums + (rows * args_.map.group_limit + group) * 4);
  }
  template <int kUnits>
  __device__ __forceinline__ void put_sums(const uint2 (&quads)[kUnits], int first, int which,
                                           float mean) const {
    float sums[kUnits];
    const bool values = layer() && which == 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      float x[4];
      unpack_quad<T>(x, quads[i]);
      if (values) {
        sums[i] = ((x[0] + x[1]) + x[2]) + x[3];
      } else {
        const bool counts = which == 0 || this->inside(first + i);
        sums[i] = 0.0f;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float v = counts ? x[e] - mean : 0.0f;
          sums[i] = fmaf(v, v, sums[i]);
        }
      }
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) sums[i] += __shfl_xor_sync(kAllLanes, sums[i], lanes);
    }
    if (place_.lane != 0) return;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (first + i < units_) store_shared_float(sum_at(which, share_.group(first + i)), sums[i]);
    }
  }
  // Of all groups, behind a barrier; and the weights have arrived.
  __device__ __forceinline__ float total(int which) const {
    if (which == 0) await_weights();
    compute_barrier();
    float sum = 0.0f;
    if (share_.active()) {
#pragma unroll 1
      for (int g = place_.lane; g < groups_; g += 32) sum += load_shared_float(sum_at(which, g));
    }
    return warp_sum(sum);
  }

  // ---- weights, and of a layer norm biases: kNormValues of each, in turn, in a stage ----

  // Stages of so many values.
  __device__ __forceinline__ int each() const { return layer() ? 2 : 1; }
  __device__ __forceinline__ int stages() const {
    return (k_ + kNormValues - 1) / kNormValues * each();
  }
  // The team's stages.
  __device__ __forceinline__ void await_weights() const {
    RingReader ring = ring_;
#pragma unroll 1
    for (int i = ring.ahead(); i < stages(); i += kTeams) {
      ring.wait(this->index_);
      ring.advance();
    }
  }
  __device__ __forceinline__ void release() {
    const int count = stages();
#pragma unroll 1
    for (int i = ring_.ahead(); i < count; i += kTeams) ring_.release();
    ring_.pass(count);
  }

  // Where a value's is, or its bias.
  __device__ __forceinline__ uint32_t weight(int value, int which) const {
    if (k_ <= kNormValues) return ring_.peek(which) + static_cast<uint32_t>(value * 2);
    const int stage = value / kNormValues;
    return ring_.peek(stage * each() + which) +
           static_cast<uint32_t>((value - stage * kNormValues) * 2);
  }

  struct Norm {
    float mean, scale;
  };

  template <int kUnits>
  __device__ __forceinline__ void apply(uint2 (&quads)[kUnits], int first, const Norm& norm) const {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int value = this->value(first + i);
      float x[4], w[4], b[4] = {};
      unpack_quad<T>(x, quads[i]);
      unpack_quad<T>(w, load_shared_quad(weight(value, 0)));
      if (layer()) unpack_quad<T>(b, load_shared_quad(weight(value, 1)));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float v = (x[e] - norm.mean) * norm.scale;
        x[e] = layer() ? fmaf(v, w[e], b[e]) : v * w[e];
      }
      quads[i] = this->inside(first + i) ? pack_quad<T>(x) : make_uint2(0, 0);
    }
  }

  RingReader& ring_;
};

}  // namespace flexq_ft::step
