#include "ft/layers/norm.h"

namespace flexq_ft {

NormArgs Norm::args(DataType dtype, int64_t hidden) const {
  NormArgs args{type_, weight_->weight.tensor(dtype, {hidden}), {}, eps_};
  if (type_ == NormType::kLayer) args.bias = weight_->bias.tensor(dtype, {hidden});
  return args;
}

void Norm::forward(Tensor out, ConstTensor x, Stream stream) const {
  invokeNorm(out, x, args(x.dtype(), x.dim(1)), stream);
}

void Norm::forward(const LinearInput& out, Tensor residual, const Product& product,
                   Stream stream) const {
  invokeResidualNorm(out, residual, product, args(residual.dtype(), residual.dim(1)), stream);
}

}  // namespace flexq_ft
