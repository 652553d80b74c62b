// The activations of a feed-forward layer, value by value.
#pragma once

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// x * sigmoid(z). The exponent is bounded, so that the divisor and its reciprocal are normal
// numbers: of a finite x the product is never NaN, and -infinity stays what it is. The reciprocal
// is off by one unit in the last place; an IEEE division would take longer than the rest of the
// kernel.
__device__ __forceinline__ float gate_with(float x, float z) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + expf(fminf(-z, 87.0f))));
  return x * inverse;
}

// 0.5 (1 + tanh(u)) = sigmoid(2 u): no cancellation for negative x.
__device__ __forceinline__ float gelu(float x) {
  const float cubic = fmaf(__fmul_rn(__fmul_rn(x, x), x), 0.044715f, x);
  return gate_with(x, __fmul_rn(cubic, 1.5957691216f));  // 2 sqrt(2 / pi)
}

// NaN stays NaN: it must reach the check on the logits.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

// Calls f(act) with the gate's activation, if it is one.
template <typename F>
__device__ __forceinline__ void with_activation(Gate gate, F&& f) {
  switch (gate) {
    case Gate::kNone:
      break;
    case Gate::kSilu:
      f([](float x) { return gate_with(x, x); });
      break;
    case Gate::kRelu:
      f([](float x) { return relu(x); });
      break;
    case Gate::kGelu:
      f([](float x) { return gelu(x); });
      break;
  }
}

}  // namespace flexq_kernels::gpu
