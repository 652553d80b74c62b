// x = round(x + (y + bias)): the residual stream after a row-parallel linear and its all-reduce.
//   x    [tokens, hidden]  fp32 | fp16 | bf16, updated in place
//   y    [tokens, hidden]  fp32
//   bias [hidden]          fp32, or undefined
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

void invokeAddResidual(Tensor x, ConstTensor y, ConstTensor bias, Stream stream);

}  // namespace flexq_ft
