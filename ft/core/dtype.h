// Element types, and the 16-bit conversions (round to nearest even) that every CPU op shares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>

// Always inlined: files compiled for AVX-512 include this, and a shared copy must not leak out.
#define FLEXQ_FT_INLINE [[gnu::always_inline]] inline

namespace flexq_ft {

enum class DataType : uint8_t { kFp32, kFp16, kBf16, kInt8, kInt32, kUint8 };

constexpr size_t size_of(DataType dtype) {
  switch (dtype) {
    case DataType::kFp32:
    case DataType::kInt32:
      return 4;
    case DataType::kFp16:
    case DataType::kBf16:
      return 2;
    case DataType::kInt8:
    case DataType::kUint8:
      return 1;
  }
  return 0;
}

constexpr bool is_float(DataType dtype) {
  return dtype == DataType::kFp32 || dtype == DataType::kFp16 || dtype == DataType::kBf16;
}

const char* to_string(DataType dtype);                     // "fp32", "fp16", "bf16", "int8", …
bool parse_dtype(const std::string& text, DataType* out);  // the same names; false if unknown
std::ostream& operator<<(std::ostream& out, DataType dtype);

// Storage of one 16-bit float; arithmetic is always fp32.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

FLEXQ_FT_INLINE float to_float(float value) { return value; }

FLEXQ_FT_INLINE float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

FLEXQ_FT_INLINE float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity and NaN keep their payload
    bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x0400u) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // subnormal: an exact multiple of 2^-24
    const float scaled = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &scaled, sizeof(bits));
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

template <typename T>
T from_float(float value);

template <>
FLEXQ_FT_INLINE float from_float<float>(float value) {
  return value;
}

template <>
FLEXQ_FT_INLINE BFloat16 from_float<BFloat16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<uint16_t>((bits >> 16) | 0x0040u)};  // quiet NaN
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
FLEXQ_FT_INLINE Half from_float<Half>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // >= 65520
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the ulp to 2^-24 and rounds
    float tiny;
    std::memcpy(&tiny, &magnitude, sizeof(tiny));
    tiny += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &tiny, sizeof(rounded));
    return {static_cast<uint16_t>(sign | (rounded - 0x3f000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

// Calls f with a value of the C++ type of a float dtype: dispatch_float(dtype, [&](auto tag) {
// using T = decltype(tag); … }).
template <typename F>
decltype(auto) dispatch_float(DataType dtype, F&& f) {
  switch (dtype) {
    case DataType::kFp16:
      return f(Half{});
    case DataType::kBf16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

}  // namespace flexq_ft
