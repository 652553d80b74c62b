#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft::gpu {

// The codes of an int8 weight as floats, for a product of floats: the scale is not applied. Exact:
// fp16 and bf16 hold every integer of eight bits.
//   out [n, k] fp16 | bf16
//   w   [n, k] int8, n * k a multiple of 16
// Never allocates, never synchronises.
void invokeDequantizeCodes(Tensor out, ConstTensor w, Stream stream);

}  // namespace flexq_ft::gpu
