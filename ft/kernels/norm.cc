#include "ft/kernels/norm.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void check_norm(Tensor out, ConstTensor x, ConstTensor weight, float eps) {
  FLEXQ_FT_CHECK(is_float(out.dtype()), "norm of ", out.dtype());
  FLEXQ_FT_CHECK_EQ(x.rank(), 2, "norm: x ", x.shape());
  FLEXQ_FT_CHECK_EQ(out.shape(), x.shape(), "norm: out and x");
  FLEXQ_FT_CHECK_EQ(out.dtype(), x.dtype(), "norm: out and x");
  FLEXQ_FT_CHECK_EQ(weight.shape(), (Shape{x.dim(1)}), "norm: weight of x ", x.shape());
  FLEXQ_FT_CHECK_EQ(weight.dtype(), x.dtype(), "norm: weight and x");
  FLEXQ_FT_CHECK_LE(0.0f, eps, "norm: eps");
}

}  // namespace

void invokeRmsNorm(Tensor out, ConstTensor x, ConstTensor weight, float eps, Stream) {
  check_norm(out, x, weight, eps);
  if (out.empty()) return;
  cpu::rms_norm(out, x, weight, eps);
}

void invokeLayerNorm(Tensor out, ConstTensor x, ConstTensor weight, ConstTensor bias, float eps,
                     Stream) {
  check_norm(out, x, weight, eps);
  FLEXQ_FT_CHECK_EQ(bias.shape(), (Shape{x.dim(1)}), "norm: bias of x ", x.shape());
  FLEXQ_FT_CHECK_EQ(bias.dtype(), x.dtype(), "norm: bias and x");
  if (out.empty()) return;
  cpu::layer_norm(out, x, weight, bias, eps);
}

}  // namespace flexq_ft
