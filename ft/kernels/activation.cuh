// The activations value by value, in the steps of activation_simd.cc.
#pragma once

#include "flexq_kernels/gpu/activation.cuh"
#include "ft/core/model_config.h"
#include "ft/kernels/rows_gpu.cuh"

namespace flexq_ft::gpu {

using flexq_kernels::gpu::gate_with;
using flexq_kernels::gpu::gelu;
using flexq_kernels::gpu::relu;

__device__ __forceinline__ void activate(float (&x)[kVector], Activation activation) {
#define FLEXQ_FT_EACH(f) _Pragma("unroll") for (int e = 0; e < kVector; ++e) x[e] = f
  switch (activation) {
    case Activation::kSilu:
      FLEXQ_FT_EACH(gate_with(x[e], x[e]));
      break;
    case Activation::kGelu:
      FLEXQ_FT_EACH(gelu(x[e]));
      break;
    case Activation::kRelu:
      FLEXQ_FT_EACH(relu(x[e]));
      break;
  }
#undef FLEXQ_FT_EACH
}

}  // namespace flexq_ft::gpu
