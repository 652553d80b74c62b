// What becomes of the sums of a product's units: one warp adds the computing warps' partial sums in
// their order, applies scales, bias, activation or residual, and publishes, unit by unit, while the
// others go on.
#pragma once

#include "ft/kernels/activation.cuh"
#include "ft/step/partial_sums.cuh"
#include "ft/step/row_tile.cuh"
#include "ft/step/token_input.cuh"

namespace flexq_ft::step {

// What an epilogue reads besides the sums: two neighbouring rows of one token.
struct PairExtras {
  float2 bias[2];   // of the gate's or only tile, and of the up tile
  float2 scale[2];  // W8
  uint32_t residual;
};

template <typename T, Format kFormat, int kTokens>
class FinishOp {
 public:
  using Sum = typename RowTile<T, kFormat, kTokens>::Sum;
  // Row pairs of a unit, 8 for each token, dealt to the lanes.
  static constexpr int kPairs = kTokens == 1 ? 1 : 2;
  static constexpr bool kScaledRows = kFormat == Format::kW8A16 || kFormat == Format::kW8A8;

  __device__ __forceinline__ FinishOp(const Place& place, int index, int kind)
      : place_(place),
        args_(place.args),
        op_(args_.ops[index]),
        index_(index),
        kind_(kind),
        halves_(halves_of(args_, kind)),
        rows_(op_.n / halves_),
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
    return (place_.lane + pair * 32) / (kStageRows / 2);
  }
  __device__ __forceinline__ int row_of(int pair) const {
    return (place_.lane + pair * 32) % (kStageRows / 2) * 2;
  }

  __device__ __forceinline__ void load_extras(PairExtras (&extras)[kPairs], int unit) const {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int token = token_of(p), row = unit * kStageRows + row_of(p);
      if (token >= args_.tokens || row >= rows_) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half >= halves_) continue;
        const int at = row + half * rows_;
        if (op_.bias != nullptr) {
          extras[p].bias[half] = __ldg(reinterpret_cast<const float2*>(op_.bias + at));
        }
        if constexpr (kScaledRows) {
          extras[p].scale[half] =
              __ldg(reinterpret_cast<const float2*>(static_cast<const float*>(op_.scales) + at));
        }
      }
      if (kind_ == kO || kind_ == kDown) extras[p].residual = residual(token, row);
    }
  }

  // Every packet of the stream was seen already, by the norm that began the layer's half: in this
  // block or its peer, or, where neither had work in that, in others. Hardly ever is there a wait.
  __device__ __forceinline__ uint32_t residual(int token, int row) const {
    const bool of_input = kind_ == kO;
    const Packet* const from = (of_input ? args_.stream_in : args_.stream_mid) +
                               (static_cast<int64_t>(token) * args_.hidden + row) / 2;
    const uint32_t epoch = epoch_ - (of_input ? 1 : 0);
    Patience patience(args_, index_, false);
    for (;;) {
      const Packet packet = load_packet(from);
      if (of_epoch(packet, epoch)) return static_cast<uint32_t>(packet);
      patience.wear();
    }
  }

  // The sums of two rows over the warps, scales and bias applied.
  __device__ __forceinline__ float2 finished(const PairExtras& extras, const PartialSums& sums,
                                             int half, int token, int row) const {
    Sum low = 0, high = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const uint2 words = load_shared_quad(sums.of_warp(half, w) +
                                           static_cast<uint32_t>((token * kStageRows + row) * 4));
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
      out.x = __fmul_rn(out.x, __fmul_rn(extras.scale[half].x, act));
      out.y = __fmul_rn(out.y, __fmul_rn(extras.scale[half].y, act));
    }
    if (op_.bias != nullptr) {
      out.x = __fadd_rn(out.x, extras.bias[half].x);
      out.y = __fadd_rn(out.y, extras.bias[half].y);
    }
    return out;
  }

  __device__ __forceinline__ void publish(const PairExtras (&extras)[kPairs], int unit,
                                          const PartialSums& sums) const {
    disturb(args_, static_cast<uint32_t>(index_ * 64 + unit));
    if (args_.disturbance.withheld_op == index_) return;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int token = token_of(p), in_tile = row_of(p);
      const int row = unit * kStageRows + in_tile;
      if (token >= args_.tokens || row >= rows_) continue;
      float2 y = finished(extras[p], sums, 0, token, in_tile);
      if (kind_ == kHead) {
        float* const to = args_.logits + static_cast<int64_t>(token) * rows_ + row;
        to[0] = y.x;
        if (row + 1 < rows_) to[1] = y.y;
        continue;
      }
      if (kind_ == kUp) {
        const auto activation = static_cast<Activation>(args_.activation);
        y = make_float2(activated(y.x, activation), activated(y.y, activation));
        if (halves_ == 2) {
          const float2 up = finished(extras[p], sums, 1, token, in_tile);
          y = make_float2(__fmul_rn(y.x, up.x), __fmul_rn(y.y, up.y));
        }
      } else if (kind_ != kQkv) {
        const float2 x = unpack_pair<T>(extras[p].residual);
        y = make_float2(__fadd_rn(x.x, y.x), __fadd_rn(x.y, y.y));
      }
      store_packet(target() + (static_cast<int64_t>(token) * rows_ + row) / 2,
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
  int index_, kind_, halves_, rows_;
  uint32_t epoch_;
};

}  // namespace flexq_ft::step
