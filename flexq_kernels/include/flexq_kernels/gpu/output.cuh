// How a product becomes an element of the output: bias, rounding, residual (gpu/gemm.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

template <typename T>
__device__ __forceinline__ T rounded(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    return __float2bfloat16_rn(value);
  }
}

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

// y[at] <- the sum over groups of column `column`.
template <typename T>
__device__ __forceinline__ void store_output_as(const Output& y, int64_t at, int64_t column,
                                                float sum) {
  if (y.bias != nullptr) sum = __fadd_rn(sum, y.bias[column]);
  T value = rounded<T>(sum);
  if (y.residual != nullptr) {
    const float residual = widened(static_cast<const T*>(y.residual)[at]);
    value = rounded<T>(__fadd_rn(widened(value), residual));
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
