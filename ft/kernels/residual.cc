#include "ft/kernels/residual.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

void invokeAddResidual(Tensor x, ConstTensor y, ConstTensor bias, Stream) {
  FLEXQ_FT_CHECK(is_float(x.dtype()), "residual of ", x.dtype());
  FLEXQ_FT_CHECK_EQ(x.rank(), 2, "residual: x ", x.shape());
  FLEXQ_FT_CHECK_EQ(y.shape(), x.shape(), "residual: y and x");
  FLEXQ_FT_CHECK_EQ(y.dtype(), DataType::kFp32, "residual: y");
  if (bias.defined()) {
    FLEXQ_FT_CHECK_EQ(bias.shape(), (Shape{x.dim(1)}), "residual: bias of x ", x.shape());
    FLEXQ_FT_CHECK_EQ(bias.dtype(), DataType::kFp32, "residual: bias");
  }
  if (x.empty()) return;
  cpu::add_residual(x, y, bias);
}

}  // namespace flexq_ft
