// What becomes of the sums of a product's units: one warp adds the computing warps' partial sums in
// their order, applies scales, bias, activation or residual, and publishes, unit by unit, while the
// others go on. Of a gated up product the 16 rows of a unit are two bands of eight
// (ft/core/row_order.h), gate and up of eight results.
#pragma once

#include "ft/core/row_order.h"
#include "ft/kernels/activation.cuh"
#include "ft/step/partial_sums.cuh"
#include "ft/step/row_tile.cuh"
#include "ft/step/token_input.cuh"

namespace flexq_ft::step {

static_assert(kStageRows == 2 * kBandRows);

// What an epilogue reads besides the sums: of two neighbouring results of one token.
struct PairExtras {
  float2 bias[2];   // of the gate's or only rows, and of up's
  float2 scale[2];  // W8
  uint32_t residual;
};

template <typename T, Format kFormat, int kTokens>
class FinishOp {
 public:
  using Sum = typename RowTile<T, kFormat, kTokens>::Sum;
  // Pairs of a unit's results, 8 or 4 for each token, dealt to the lanes.
  static constexpr int kPairs = kTokens == 1 ? 1 : 2;
  static constexpr bool kScaledRows = kFormat == Format::kW8A16 || kFormat == Format::kW8A8;

  __device__ __forceinline__ FinishOp(const Place& place, int index, int kind)
      : place_(place),
        args_(place.args),
        op_(args_.ops[index]),
        index_(index),
        kind_(kind),
        gated_(kind == kUp && args_.gated),
        results_(gated_ ? op_.n / 2 : op_.n),
        epoch_(place.epoch(index / kLayerOps)) {}

  __device__ __forceinline__ void run(PartialSums& sums) const {
    const uint32_t planned = place_.planned(index_);
    const int first = first_unit(planned), count = unit_count(planned);
    if (count == 0) return;
#pragma unroll 1
    for (int u = first; u < first + count; ++u) {
      PairExtras extras[kPairs] = {};
      load_extras(extras, u);
      sums.await_full(index_);
      publish(extras, u, sums);
      sums.hand_back();
    }
    if (place_.lane == 0 && kind_ != kHead) count_arrival(args_, kArrived + kind_);
  }

 private:
  __device__ __forceinline__ int token_of(int pair) const {
    return (place_.lane + pair * 32) >> (gated_ ? 2 : 3);
  }
  // In the unit, the first of two; where there is a gate it is also the gate's row.
  __device__ __forceinline__ int result_of(int pair) const {
    return (place_.lane + pair * 32) % (gated_ ? kBandRows / 2 : kStageRows / 2) * 2;
  }
  __device__ __forceinline__ int first_result(int unit) const {
    return unit * (gated_ ? kBandRows : kStageRows);
  }

  __device__ __forceinline__ void load_extras(PairExtras (&extras)[kPairs], int unit) const {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int token = token_of(p), result = first_result(unit) + result_of(p);
      if (token >= args_.tokens || result >= results_) continue;
#pragma unroll
      for (int band = 0; band < 2; ++band) {
        if (band == 1 && !gated_) continue;
        const int row = unit * kStageRows + result_of(p) + band * kBandRows;
        if (op_.bias != nullptr) {
          extras[p].bias[band] = __ldg(reinterpret_cast<const float2*>(op_.bias + row));
        }
        if constexpr (kScaledRows) {
          extras[p].scale[band] =
              __ldg(reinterpret_cast<const float2*>(static_cast<const float*>(op_.scales) + row));
        }
      }
      if (kind_ == kO || kind_ == kDown) extras[p].residual = residual(token, result);
    }
  }

  // Every packet of the stream was seen already, by the norm that began the layer's half: in this
  // block or its peer, or, where neither had work in that, in others. Hardly ever is there a wait.
  __device__ __forceinline__ uint32_t residual(int token, int result) const {
    const bool of_input = kind_ == kO;
    const Packet* const from = (of_input ? args_.stream_in : args_.stream_mid) +
                               (static_cast<int64_t>(token) * args_.hidden + result) / 2;
    const uint32_t epoch = epoch_ - (of_input ? 1 : 0);
    Patience patience(args_, index_, false);
    for (;;) {
      const Packet packet = load_packet(from);
      if (of_epoch(packet, epoch)) return static_cast<uint32_t>(packet);
      patience.wear();
    }
  }

  // The sums of two rows over the warps, scales and bias applied. row: in the band.
  __device__ __forceinline__ float2 finished(const PairExtras& extras, const PartialSums& sums,
                                             int band, int token, int row) const {
    Sum low = 0, high = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int at = token * kStageRows + band * kBandRows + row;
      const uint2 words = load_shared_quad(sums.of_warp(w) + static_cast<uint32_t>(at * 4));
      Sum values[2];
      memcpy(values, &words, 8);
      low += values[0];
      high += values[1];
    }
    float2 out = make_float2(static_cast<float>(low), static_cast<float>(high));
    if constexpr (kScaledRows) {
      float act = 1.0f;
      if constexpr (kFormat == Format::kW8A8) {
        const int at = scale_row(kind_) * args_.map.scale_tokens + token;
        act = load_shared_float(place_.at(args_.map.scales + at * 4));
      }
      out.x = __fmul_rn(out.x, __fmul_rn(extras.scale[band].x, act));
      out.y = __fmul_rn(out.y, __fmul_rn(extras.scale[band].y, act));
    }
    if (op_.bias != nullptr) {
      out.x = __fadd_rn(out.x, extras.bias[band].x);
      out.y = __fadd_rn(out.y, extras.bias[band].y);
    }
    return out;
  }

  __device__ __forceinline__ void publish(const PairExtras (&extras)[kPairs], int unit,
                                          const PartialSums& sums) const {
    disturb(args_, static_cast<uint32_t>(index_ * 64 + unit));
    if (args_.disturbance.withheld_op == index_) return;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int token = token_of(p), row = result_of(p);
      const int result = first_result(unit) + row;
      if (token >= args_.tokens || result >= results_) continue;
      float2 y = finished(extras[p], sums, 0, token, row);
      if (kind_ == kHead) {
        float* const to = args_.logits + static_cast<int64_t>(token) * results_ + result;
        to[0] = y.x;
        if (result + 1 < results_) to[1] = y.y;
        continue;
      }
      if (kind_ == kUp) {
        const auto activation = static_cast<Activation>(args_.activation);
        y = make_float2(activated(y.x, activation), activated(y.y, activation));
        if (gated_) {
          const float2 up = finished(extras[p], sums, 1, token, row);
          y = make_float2(__fmul_rn(y.x, up.x), __fmul_rn(y.y, up.y));
        }
      } else if (kind_ != kQkv) {
        const float2 x = unpack_pair<T>(extras[p].residual);
        y = make_float2(__fadd_rn(x.x, y.x), __fadd_rn(x.y, y.y));
      }
      store_packet(target() + (static_cast<int64_t>(token) * results_ + result) / 2,
                   pack_pair<T>(y.x, y.y), epoch_);
    }
  }

  static __device__ __forceinline__ float activated(float x, Activation activation) {
    return activation == Activation::kSilu   ? gpu::gate_with(x, x)
           : activation == Activation::kGelu ? gpu::gelu(x)
                                             : gpu::relu(x);
  }

  __device__ __forceinline__ Packet* target() const {
    return kind_ == kQkv  ? args_.qkv
           : kind_ == kO  ? args_.stream_mid
           : kind_ == kUp ? args_.raised
                          : args_.stream_in;
  }

  const Place& place_;
  const Args& args_;
  Op op_;
  int index_, kind_;
  bool gated_;
  int results_;  // of a token
  uint32_t epoch_;
};

}  // namespace flexq_ft::step
