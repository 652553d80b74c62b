// Linear: the one layer for every precision. The weight's DataFormat picks the activation quantiser
// and the product; adding a precision adds a value there and a line in linear.cc.
#pragma once

#include "ft/layers/workspace.h"
#include "ft/weights/model_weights.h"

namespace flexq_ft {

// How many codes and scales one token's quantised input has; zero where it is not quantised.
struct ActivationCodes {
  int64_t k = 0;  // padded to whole groups
  int64_t groups = 0;
  static ActivationCodes of(const DataFormat& format, int64_t k);
};

class Linear {
 public:
  // Keeps a reference: the weight must outlive the layer.
  explicit Linear(const LinearWeight& weight) : weight_(&weight) {}

  const LinearWeight& weight() const { return *weight_; }

  // y [tokens, n] fp32 = x [tokens, k] · wᵀ + bias. Quantised codes go to the context's workspace.
  void forward(Tensor y, ConstTensor x, const LayerContext& context) const;

 private:
  void multiply(Tensor y, ConstTensor x, const LayerContext& context) const;
  void multiply_quantized(Tensor y, ConstTensor x, const LayerContext& context) const;

  const LinearWeight* weight_;
};

// residual += sum over ranks of product + bias: the end of every row-parallel layer. The bias is
// added once, after the all-reduce. product [tokens, hidden] fp32 is overwritten.
void add_row_parallel(Tensor residual, Tensor product, const Buffer& bias,
                      const LayerContext& context);

}  // namespace flexq_ft
