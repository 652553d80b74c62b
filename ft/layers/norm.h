// Norm: RMSNorm or LayerNorm, whichever the model has.
#pragma once

#include "ft/kernels/norm.h"
#include "ft/weights/model_weights.h"

namespace flexq_ft {

class Norm {
 public:
  // Keeps a reference: the weight must outlive the layer.
  Norm(NormType type, const NormWeight& weight, double eps)
      : type_(type), weight_(&weight), eps_(static_cast<float>(eps)) {}

  // out and x [tokens, hidden], of the compute type; out may alias x.
  void forward(Tensor out, ConstTensor x, Stream stream) const;

  // residual += product, then out = norm(residual).
  void forward(const LinearInput& out, Tensor residual, const Product& product,
               Stream stream) const;

 private:
  NormArgs args(DataType dtype, int64_t hidden) const;

  NormType type_;
  const NormWeight* weight_;
  float eps_;
};

}  // namespace flexq_ft
