// The float types of a kernel, and its reading of an unfinished Product.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ft/core/check.h"
#include "ft/core/dtype.h"
#include "ft/kernels/product.h"

namespace flexq_ft::gpu {

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(int32_t x) { return __int2float_rn(x); }

// Round to nearest even, as the CPU's from_float.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

// The value after one rounding to T, as fp32.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// Product (ft/kernels/product.h) as a kernel takes it; In is float or int32_t. Null: absent.
template <typename In>
struct ProductView {
  const In* values;
  const float* act_scale;
  const float* weight_scale;
  const float* bias;
  int64_t columns;

  explicit ProductView(const Product& p)
      : values(static_cast<const In*>(p.values.raw())),
        act_scale(static_cast<const float*>(p.act_scale.raw())),
        weight_scale(static_cast<const float*>(p.weight_scale.raw())),
        bias(static_cast<const float*>(p.bias.raw())),
        columns(p.values.rank() == 2 ? p.values.dim(1) : 0) {}

  // One value, given what values[token, column] holds; as finish_product on the CPU: one rounding
  // for the product of the scales, one for the product, one for the bias.
  __device__ __forceinline__ float finish(In value, int64_t token, int64_t column) const {
    const float a = act_scale != nullptr ? act_scale[token] : 1.0f;
    const float w = weight_scale != nullptr ? weight_scale[column] : 1.0f;
    const float b = bias != nullptr ? bias[column] : 0.0f;
    return __fadd_rn(__fmul_rn(to_float(value), __fmul_rn(w, a)), b);
  }

  __device__ __forceinline__ float at(int64_t token, int64_t column) const {
    return finish(values[token * columns + column], token, column);
  }
};

// Calls f(T{}) with the kernel's type of a compute type. fp32 too: ops are tested in it.
template <typename F>
void dispatch_compute_type(DataType dtype, F&& f) {
  switch (dtype) {
    case DataType::kFp16:
      return f(__half{});
    case DataType::kBf16:
      return f(__nv_bfloat16{});
    case DataType::kFp32:
      return f(float{});
    default:
      FLEXQ_FT_CHECK(false, "compute type ", dtype);
  }
}

// As below, for an op that takes products rounded to T too.
template <typename T, typename F>
void dispatch_any_product_type(const Product& product, F&& f) {
  if (product.values.dtype() == DataType::kInt32) return f(int32_t{});
  if (product.values.dtype() == DataType::kFp32) return f(float{});
  f(T{});
}

// Calls f(In{}) with the type of a product's values: float or int32_t.
template <typename F>
void dispatch_product_type(const Product& product, F&& f) {
  if (product.values.dtype() == DataType::kInt32) return f(int32_t{});
  FLEXQ_FT_CHECK_EQ(product.values.dtype(), DataType::kFp32, "product of a GPU op");
  f(float{});
}

}  // namespace flexq_ft::gpu
