// Random operands and the comparison of results, on the GPU.
#pragma once

#include <cstdint>

#include "ft/core/buffer.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft::gpu {

// Floats in [-1, 1), or int8 codes of -127 to 127, that follow from the seed and the place. Never
// zeros or constants: they save power and raise the clocks.
void fill_random(Tensor out, uint32_t seed, Stream stream);

struct Difference {
  double calc_diff = 0;  // 1 - 2 <a, b> / (<a, a> + <b, b>); NaN with any NaN
  int64_t unequal = 0;   // elements of other bits
};

// Of two tensors of fp32 or int32.
class Comparer {
 public:
  Comparer();
  Difference operator()(ConstTensor a, ConstTensor b, Stream stream);  // waits

 private:
  Buffer partials_;
};

}  // namespace flexq_ft::gpu
