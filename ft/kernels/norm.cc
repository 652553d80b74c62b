#include "ft/kernels/norm.h"

#include "ft/kernels/residual.h"
#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void check_norm(ConstTensor x, const NormArgs& norm) {
  FLEXQ_FT_CHECK(is_float(x.dtype()), "norm of ", x.dtype());
  FLEXQ_FT_CHECK_EQ(x.rank(), 2, "norm: x ", x.shape());
  FLEXQ_FT_CHECK_EQ(norm.weight.shape(), (Shape{x.dim(1)}), "norm: weight of x ", x.shape());
  FLEXQ_FT_CHECK_EQ(norm.weight.dtype(), x.dtype(), "norm: weight and x");
  FLEXQ_FT_CHECK_LE(0.0f, norm.eps, "norm: eps");
  if (norm.type == NormType::kRms) return;
  FLEXQ_FT_CHECK_EQ(norm.bias.shape(), (Shape{x.dim(1)}), "norm: bias of x ", x.shape());
  FLEXQ_FT_CHECK_EQ(norm.bias.dtype(), x.dtype(), "norm: bias and x");
}

void norm_cpu(Tensor out, ConstTensor x, const NormArgs& norm) {
  if (norm.type == NormType::kRms) return cpu::rms_norm(out, x, norm.weight, norm.eps);
  cpu::layer_norm(out, x, norm.weight, norm.bias, norm.eps);
}

}  // namespace

void invokeNorm(Tensor out, ConstTensor x, const NormArgs& norm, Stream stream) {
  check_norm(x, norm);
  FLEXQ_FT_CHECK_EQ(out.shape(), x.shape(), "norm: out and x");
  FLEXQ_FT_CHECK_EQ(out.dtype(), x.dtype(), "norm: out and x");
  if (out.empty()) return;
  if (out.device() == Device::kCuda) {
    LinearInput into;
    into.values = out;
    into.dtype = out.dtype();
    const Tensor unchanged(const_cast<void*>(x.raw()), x.dtype(), x.shape(), x.device());
    return gpu::residual_norm(into, unchanged, {}, norm, stream);
  }
  norm_cpu(out, x, norm);
}

void invokeResidualNorm(const LinearInput& out, Tensor residual, const Product& product,
                        const NormArgs& norm, Stream stream) {
  check_norm(residual, norm);
  const int64_t tokens = residual.dim(0);
  const int64_t hidden = residual.dim(1);
  check_linear_input(out, tokens, hidden);
  FLEXQ_FT_CHECK_EQ(out.dtype, residual.dtype(), "norm: out and residual");
  if (product.defined()) check_product(product, tokens, hidden);
  if (residual.empty()) return;
  if (residual.device() == Device::kCuda) {
    return gpu::residual_norm(out, residual, product, norm, stream);
  }
  if (product.defined()) invokeAddResidual(residual, product, stream);
  norm_cpu(out.values, residual, norm);
  quantize_values(out, stream);
}

}  // namespace flexq_ft
