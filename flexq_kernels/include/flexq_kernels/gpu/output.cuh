// How a product becomes an element of the output: bias, rounding, residual (gpu/gemm.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

template <typename T>
struct OutputValue;

template <>
struct OutputValue<float> {
  static __device__ __forceinline__ float round(float x) { return x; }
  static __device__ __forceinline__ float widen(float x) { return x; }
};
template <>
struct OutputValue<__half> {
  static __device__ __forceinline__ __half round(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ float widen(__half x) { return __half2float(x); }
};
template <>
struct OutputValue<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 round(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
};

// y[at] <- the sum over groups of column `column`.
template <typename T>
__device__ __forceinline__ void store_output_as(const Output& y, int64_t at, int64_t column,
                                                float sum) {
  using Value = OutputValue<T>;
  if (y.bias != nullptr) sum = __fadd_rn(sum, y.bias[column]);
  T value = Value::round(sum);
  if (y.residual != nullptr) {
    const float residual = Value::widen(static_cast<const T*>(y.residual)[at]);
    value = Value::round(__fadd_rn(Value::widen(value), residual));
  }
  static_cast<T*>(y.values)[at] = value;
}

__device__ __forceinline__ void store_output(const Output& y, int64_t at, int64_t column,
                                             float sum) {
  switch (y.type) {
    case FloatType::kFp32:
      store_output_as<float>(y, at, column, sum);
      break;
    case FloatType::kFp16:
      store_output_as<__half>(y, at, column, sum);
      break;
    case FloatType::kBf16:
      store_output_as<__nv_bfloat16>(y, at, column, sum);
      break;
  }
}

}  // namespace flexq_kernels::gpu
