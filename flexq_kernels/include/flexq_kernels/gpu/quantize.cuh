// The activation quantiser's steps, each one IEEE operation (docs/numerics.md): codes and scales
// are those of quantize_activations, bit for bit.
#pragma once

#include <cstdint>

#include "flexq_kernels/activation_order.h"  // fragment_word

namespace flexq_kernels::gpu {

constexpr int kInfinityBits = 0x7f800000;
constexpr int kLeastGroupBits = 0x0d800000;  // 2^-100

// At least kInfinityBits if x is infinite or NaN; the largest of a group is its max|x|.
__device__ __forceinline__ int magnitude_bits(float x) { return __float_as_int(x) & 0x7fffffff; }

// From the bits of max|x|; limit 31 or 127. The inverse is 0 where all codes are.
__device__ __forceinline__ float group_inverse(int bits, int limit) {
  if (bits < kLeastGroupBits || bits >= kInfinityBits) return 0.0f;
  return __fdiv_rn(static_cast<float>(limit), __int_as_float(bits));
}

__device__ __forceinline__ float group_scale(int bits, int limit) {
  if (bits < kLeastGroupBits) return 0.0f;
  if (bits >= kInfinityBits) return __int_as_float(0x7fc00000);
  // The quotient by a constant, correctly rounded: the remainder is exact, and no step is subnormal
  // that matters. A division would be a long dependent chain with a branch.
  const float a = __int_as_float(bits), divisor = static_cast<float>(limit);
  const float inverse = limit == 31 ? 1.0f / 31.0f : 1.0f / 127.0f;
  const float quotient = __fmul_rn(a, inverse);
  return __fmaf_rn(__fmaf_rn(-quotient, divisor, a), inverse, quotient);
}

// rint(x), between -limit - 1 and limit; x is at least -2^22. A float of that size plus 1.5 * 2^23
// is rounded to the nearest integer, half to even, as rint does it, at four times the rate of a
// conversion; a larger one keeps its order, and ends at the limit.
__device__ __forceinline__ int limited_rint(float x, int limit) {
  constexpr int kBias = 0x4b400000;
  const float biased = __fadd_rn(x, __int_as_float(kBias));
  return min(max(__float_as_int(biased) - kBias, -limit - 1), limit);
}

// |x * inverse| is hardly above the limit.
__device__ __forceinline__ int quantized(float x, float inverse, int limit) {
  if (inverse == 0.0f) return 0;  // x may be NaN
  return limited_rint(__fmul_rn(x, inverse), limit);
}

}  // namespace flexq_kernels::gpu
