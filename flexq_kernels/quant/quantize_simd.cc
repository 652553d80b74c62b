// The quantisers, row by row. Single IEEE operations in the order of docs/numerics.md: the bits of
// the codes and scales are part of the contract, so nothing here may be contracted or reassociated.
#include "flexq_kernels/cpu/simd_int8.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quant/quantize_cpu.h"

namespace flexq_kernels::FLEXQ_ISA {

namespace {

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kLeastGroupBits = 0x0d800000;  // 2^-100
constexpr int32_t kQuietNanBits = 0x7fc00000;
constexpr float kLargestScale = 65504.0f;

FLEXQ_SIMD float from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <FloatType kType>
struct Source;

template <>
struct Source<FloatType::kFp32> {
  using T = float;
  FLEXQ_SIMD F32x16 get(const float* p) { return load(p); }
};
template <>
struct Source<FloatType::kFp16> {
  using T = uint16_t;
  FLEXQ_SIMD F32x16 get(const uint16_t* p) { return load_fp16(p); }
};
template <>
struct Source<FloatType::kBf16> {
  using T = uint16_t;
  FLEXQ_SIMD F32x16 get(const uint16_t* p) { return load_bf16(p); }
};

// Sixteen values from p, zeros past `count`.
template <FloatType kType>
FLEXQ_SIMD F32x16 get(const typename Source<kType>::T* p, int64_t count) {
  if (count >= kLanes) return Source<kType>::get(p);
  typename Source<kType>::T part[kLanes] = {};
  std::memcpy(part, p, static_cast<size_t>(count) * sizeof(part[0]));
  return Source<kType>::get(part);
}

FLEXQ_SIMD void put_i8(int8_t* p, I32x16 codes, int64_t count) {
  if (count >= kLanes) {
    store_i8(p, codes);
    return;
  }
  int8_t part[kLanes];
  store_i8(part, codes);
  std::memcpy(p, part, static_cast<size_t>(count));
}

// The bits of max|x|; at least kInfinityBits if an element is infinite or NaN.
template <FloatType kType>
FLEXQ_SIMD int32_t max_magnitude(const typename Source<kType>::T* x, int64_t count) {
  I32x16 best = zero_i32();
  for (int64_t i = 0; i < count; i += kLanes) {
    best = max(best, magnitude_bits(get<kType>(x + i, count - i)));
  }
  return reduce_max(best);
}

// The value after rounding to fp16, and its bits.
FLEXQ_SIMD float round_to_fp16(float value, uint16_t* bits) {
  uint16_t half[kLanes];
  float single[kLanes];
  store_fp16(half, broadcast(value));
  store(single, load_fp16(half));
  *bits = half[0];
  return single[0];
}

FLEXQ_SIMD void quantize_by_division(int8_t* codes, const float* w, int64_t count, float scale,
                                     int32_t least, int32_t greatest) {
  const F32x16 divisor = broadcast(scale);
  const I32x16 low = broadcast_i32(least), high = broadcast_i32(greatest);
  for (int64_t i = 0; i < count; i += kLanes) {
    const I32x16 q = round_to_i32(div(get<FloatType::kFp32>(w + i, count - i), divisor));
    put_i8(codes + i, max(low, min(high, q)), count - i);
  }
}

template <FloatType kType>
void quantize_activation_row(const ActivationQuantizer& q, int64_t row) {
  const int64_t groups = (q.k + q.group - 1) / q.group;
  const auto* x = static_cast<const typename Source<kType>::T*>(q.x) + row * q.k;
  const int32_t limit = q.act_bits == 6 ? 31 : 127;
  const I32x16 low = broadcast_i32(-limit - 1), high = broadcast_i32(limit);
  // Far past the codes: a static scale may be much too small, and a conversion has an end.
  const F32x16 least = broadcast(-256.0f), greatest = broadcast(256.0f);
  const bool is_static = q.static_scale > 0.0f;
  for (int64_t g = 0; g < groups; ++g, x += q.group) {
    int8_t* codes = q.codes + (row * groups + g) * q.group;
    float* scale = q.scales + row * groups + g;
    const int64_t left = q.k - g * q.group;
    const int64_t count = left < q.group ? left : q.group;
    const int32_t bits = max_magnitude<kType>(x, count);
    if ((bits < kLeastGroupBits && !is_static) || bits >= kInfinityBits) {
      *scale = bits < kInfinityBits ? 0.0f : from_bits(kQuietNanBits);
      std::memset(codes, 0, static_cast<size_t>(q.group));
      continue;
    }
    const float a = from_bits(bits);
    const F32x16 inverse =
        broadcast(is_static ? 1.0f / q.static_scale : static_cast<float>(limit) / a);
    *scale = is_static ? q.static_scale : a / static_cast<float>(limit);
    for (int64_t i = 0; i < count; i += kLanes) {
      const F32x16 scaled = mul(get<kType>(x + i, count - i), inverse);
      const I32x16 code = round_to_i32(max(least, min(greatest, scaled)));
      put_i8(codes + i, max(low, min(high, code)), count - i);
    }
    std::memset(codes + count, 0, static_cast<size_t>(q.group - count));
  }
}

template <FloatType kType>
void widen_values(float* dst, const void* src, int64_t count) {
  const auto* x = static_cast<const typename Source<kType>::T*>(src);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, Source<kType>::get(x + i));
  if (i < count) {
    float part[kLanes];
    store(part, get<kType>(x + i, count - i));
    std::memcpy(dst + i, part, static_cast<size_t>(count - i) * sizeof(float));
  }
}

}  // namespace

bool quantize_weight_int6_rows(int8_t* codes, uint16_t* scales, const float* w, int64_t k,
                               int64_t begin, int64_t end) {
  const int64_t groups = group_count(k);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = row * k + g * kGroupSize;
      const int64_t left = k - g * kGroupSize;
      const int64_t count = left < kGroupSize ? left : kGroupSize;
      const int32_t bits = max_magnitude<FloatType::kFp32>(w + at, count);
      const float wanted = from_bits(bits) / 31.0f;
      if (bits >= kInfinityBits || wanted > kLargestScale) return false;
      const float scale = round_to_fp16(wanted > 1e-5f ? wanted : 1e-5f, &scales[row * groups + g]);
      quantize_by_division(codes + at, w + at, count, scale, -32, 31);
    }
  }
  return true;
}

bool quantize_weight_int8_rows(int8_t* codes, float* scales, const float* w, int64_t k,
                               int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int32_t bits = max_magnitude<FloatType::kFp32>(w + row * k, k);
    if (bits >= kInfinityBits) return false;
    const float scale = from_bits(bits) / 127.0f;
    scales[row] = scale > 0.0f ? scale : 1.0f;
    quantize_by_division(codes + row * k, w + row * k, k, scales[row], -127, 127);
  }
  return true;
}

void quantize_activation_rows(const ActivationQuantizer& q, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    switch (q.type) {
      case FloatType::kFp32:
        quantize_activation_row<FloatType::kFp32>(q, row);
        break;
      case FloatType::kFp16:
        quantize_activation_row<FloatType::kFp16>(q, row);
        break;
      case FloatType::kBf16:
        quantize_activation_row<FloatType::kBf16>(q, row);
        break;
    }
  }
}

void widen(float* dst, const void* src, FloatType type, int64_t count) {
  switch (type) {
    case FloatType::kFp32:
      widen_values<FloatType::kFp32>(dst, src, count);
      break;
    case FloatType::kFp16:
      widen_values<FloatType::kFp16>(dst, src, count);
      break;
    case FloatType::kBf16:
      widen_values<FloatType::kBf16>(dst, src, count);
      break;
  }
}

}  // namespace flexq_kernels::FLEXQ_ISA
