// x = round(x + product): the residual stream after a row-parallel linear and its all-reduce.
//   x       [tokens, hidden]  fp32 | fp16 | bf16, updated in place
//   product [tokens, hidden]
#pragma once

#include "ft/kernels/product.h"

namespace flexq_ft {

void invokeAddResidual(Tensor x, const Product& product, Stream stream);

}  // namespace flexq_ft
