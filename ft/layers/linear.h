// Linear: the one layer for every precision. The weight's DataFormat picks the activation quantiser
// and the product; adding a precision adds a value there and a line in linear.cc.
#pragma once

#include <optional>

#include "flexq_kernels/gemm.h"
#include "ft/core/model_config.h"
#include "ft/kernels/product.h"
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

  // Whether forward() can round its output to the compute type itself, where the op behind it would
  // do nothing else first: half the bytes between the two. y is then of that type.
  bool can_round(int64_t tokens, const LayerContext& context) const;

  // Whether forward_gated() can do what this layer of gate and up and the op behind it would, with
  // the same bits.
  bool can_gate(int64_t tokens, const LayerContext& context) const;

  // What the op before this layer is to fill: values [tokens, k] in the memory given, or codes and
  // scales in the context's workspace, or both.
  LinearInput input(Tensor values, const LayerContext& context) const;

  // The product of an input made by input(), in y [tokens, n] fp32 (or see can_round): x · wᵀ +
  // bias, of which the op behind this layer applies what the Product says.
  Product forward(Tensor y, const LinearInput& x, const LayerContext& context) const;

  // h [tokens, n / 2] of the compute type = activation(gate) * up, where can_gate().
  void forward_gated(Tensor h, const LinearInput& x, Activation activation,
                     const LayerContext& context) const;

 private:
  Product multiply(Tensor y, const LinearInput& x, const LayerContext& context) const;
  Product multiply_cpu(Tensor y, const LinearInput& x, const LayerContext& context) const;
  Product multiply_gpu(Tensor y, const LinearInput& x, const LayerContext& context) const;
  void multiply_w6ax(Tensor y, const LinearInput& x, std::optional<Activation> gate,
                     const LayerContext& context) const;
  flexq_kernels::GemmProblem problem(int64_t tokens) const;

  const LinearWeight* weight_;
};

// The sum over ranks of a row-parallel product; the layer's bias is added once, behind it.
Product reduce_row_parallel(Product product, const Buffer& bias, const LayerContext& context);

}  // namespace flexq_ft
