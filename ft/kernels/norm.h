// RMSNorm and LayerNorm over the last axis, statistics in fp32, rounded once on the store.
// tokens == 0 is a no-op. Never allocates, never synchronises.
#pragma once

#include "ft/core/model_config.h"
#include "ft/kernels/product.h"

namespace flexq_ft {

struct NormArgs {
  NormType type = NormType::kRms;
  ConstTensor weight;  // [hidden], dtype of x
  ConstTensor bias;    // [hidden], LayerNorm only
  float eps = 0.0f;
};

// out = norm(x).
//   out  [tokens, hidden]  fp32 | fp16 | bf16; may alias x
//   x    [tokens, hidden]  dtype of out
void invokeNorm(Tensor out, ConstTensor x, const NormArgs& norm, Stream stream);

// residual = round(residual + product), then out = norm(residual), quantised where out asks for it:
// what stands between a row-parallel linear and the next column-parallel one.
//   residual [tokens, hidden]  fp32 | fp16 | bf16, updated in place
//   product  [tokens, hidden], or undefined: the residual stays
void invokeResidualNorm(const LinearInput& out, Tensor residual, const Product& product,
                        const NormArgs& norm, Stream stream);

}  // namespace flexq_ft
