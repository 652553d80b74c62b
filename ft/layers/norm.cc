#include "ft/layers/norm.h"

#include "ft/kernels/norm.h"

namespace flexq_ft {

void Norm::forward(Tensor out, ConstTensor x, Stream stream) const {
  const Shape shape{x.dim(1)};
  const Tensor weight = weight_->weight.tensor(x.dtype(), shape);
  if (type_ == NormType::kRms) return invokeRmsNorm(out, x, weight, eps_, stream);
  invokeLayerNorm(out, x, weight, weight_->bias.tensor(x.dtype(), shape), eps_, stream);
}

}  // namespace flexq_ft
