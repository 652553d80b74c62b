#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

void run(Tensor out, ConstTensor x, ConstTensor weight, const void* bias, float eps, bool layer) {
  const int64_t hidden = x.dim(1);
  flexq_kernels::parallel_ranges(x.dim(0), x.count(), [&](int64_t begin, int64_t end) {
    FLEXQ_ISA_PICK(norm_rows)
    ({out.rows(begin, end).raw(), x.rows(begin, end).raw(), weight.raw(), bias, end - begin, hidden,
      eps, layer, x.dtype()});
  });
}

}  // namespace

void rms_norm(Tensor out, ConstTensor x, ConstTensor weight, float eps) {
  run(out, x, weight, nullptr, eps, false);
}

void layer_norm(Tensor out, ConstTensor x, ConstTensor weight, ConstTensor bias, float eps) {
  run(out, x, weight, bias.raw(), eps, true);
}

}  // namespace flexq_ft::cpu
