// RMSNorm and LayerNorm over the last axis, statistics in fp32, rounded once on the store.
//   out    [tokens, hidden]  fp32 | fp16 | bf16; may alias x
//   x      [tokens, hidden]  dtype of out
//   weight [hidden], bias [hidden]  dtype of out
// tokens == 0 is a no-op. Never allocates, never synchronises.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

void invokeRmsNorm(Tensor out, ConstTensor x, ConstTensor weight, float eps, Stream stream);
void invokeLayerNorm(Tensor out, ConstTensor x, ConstTensor weight, ConstTensor bias, float eps,
                     Stream stream);

}  // namespace flexq_ft
