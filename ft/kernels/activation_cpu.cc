#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

void activation(Tensor out, ConstTensor x, Activation activation, bool gated) {
  const int64_t inter = out.dim(1);
  flexq_kernels::parallel_ranges(out.dim(0), out.count() * 4, [&](int64_t begin, int64_t end) {
    FLEXQ_ISA_PICK(activation_rows)
    ({out.rows(begin, end).raw(), x.data<float>() + begin * x.dim(1), end - begin, inter, gated,
      activation, out.dtype()});
  });
}

}  // namespace flexq_ft::cpu
