// Ffn: up product(s), activation, down product, all-reduce, residual.
// Tensor parallel: the rank's channels; the down product is row-parallel.
#pragma once

#include "ft/core/model_config.h"
#include "ft/layers/linear.h"

namespace flexq_ft {

class Ffn {
 public:
  // Keeps references: the weights must outlive the layer. gated: up holds gate rows, then up rows.
  Ffn(const LayerWeights& weights, Activation activation, bool gated)
      : up_(weights.up),
        down_(weights.down),
        down_bias_(&weights.down_bias),
        activation_(activation),
        gated_(gated) {}

  // residual [tokens, hidden] += ffn(x); x [tokens, hidden] is the normed residual.
  void forward(Tensor residual, ConstTensor x, const LayerContext& context) const;

  const Linear& up() const { return up_; }
  const Linear& down() const { return down_; }

 private:
  Linear up_;
  Linear down_;
  const Buffer* down_bias_;
  Activation activation_;
  bool gated_;
};

}  // namespace flexq_ft
