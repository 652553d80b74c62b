#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

void add_residual(Tensor x, ConstTensor y, ConstTensor bias) {
  const int64_t hidden = x.dim(1);
  const float* bias_data = bias.defined() ? bias.data<float>() : nullptr;
  flexq_kernels::parallel_ranges(x.dim(0), x.count(), [&](int64_t begin, int64_t end) {
    FLEXQ_ISA_PICK(residual_rows)
    ({x.rows(begin, end).raw(), y.data<float>() + begin * hidden, bias_data, end - begin, hidden,
      x.dtype()});
  });
}

}  // namespace flexq_ft::cpu
