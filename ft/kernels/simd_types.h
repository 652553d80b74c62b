// Vector loads and stores of the float types, whole or partial, for the *_simd.cc files.
#pragma once

#include "flexq_kernels/cpu/simd_math.h"
#include "ft/core/dtype.h"

namespace flexq_ft::FLEXQ_ISA {

using namespace flexq_kernels::FLEXQ_ISA;  // NOLINT: one namespace per ISA, in sources only
using flexq_kernels::FLEXQ_ISA::load;
using flexq_kernels::FLEXQ_ISA::store;

FLEXQ_SIMD F32x16 load(const Half* p) { return load_fp16(&p->bits); }
FLEXQ_SIMD F32x16 load(const BFloat16* p) { return load_bf16(&p->bits); }
FLEXQ_SIMD F32x16 load(const int8_t* p) { return load_i8(p); }
FLEXQ_SIMD void store(Half* p, F32x16 a) { store_fp16(&p->bits, a); }
FLEXQ_SIMD void store(BFloat16* p, F32x16 a) { store_bf16(&p->bits, a); }

// The first n lanes; the others are zero, and are not touched in memory.
template <typename T>
FLEXQ_SIMD F32x16 load_n(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T padded[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}

template <typename T>
FLEXQ_SIMD void store_n(T* p, F32x16 a, int64_t n) {
  if (n >= kLanes) return store(p, a);
  T padded[kLanes];
  store(padded, a);
  for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
}

// The value after one rounding to T, as fp32.
template <typename T>
FLEXQ_SIMD F32x16 rounded(F32x16 a) {
  T buffer[kLanes];
  store(buffer, a);
  return load(buffer);
}

}  // namespace flexq_ft::FLEXQ_ISA

// Calls f<T>(arguments) with the C++ type of a float dtype.
#define FLEXQ_FT_PICK_FLOAT(dtype, f, ...) \
  switch (dtype) {                         \
    case DataType::kFp16:                  \
      f<Half>(__VA_ARGS__);                \
      break;                               \
    case DataType::kBf16:                  \
      f<BFloat16>(__VA_ARGS__);            \
      break;                               \
    default:                               \
      f<float>(__VA_ARGS__);               \
      break;                               \
  }
