// Ffn: up product(s), activation, down product, all-reduce.
// Tensor parallel: the rank's channels; the down product is row-parallel.
#pragma once

#include "ft/core/model_config.h"
#include "ft/layers/linear.h"

namespace flexq_ft {

class Ffn {
 public:
  // Keeps references: the weights must outlive the layer. gated: up holds gate and up.
  Ffn(const LayerWeights& weights, Activation activation, bool gated)
      : up_(weights.up),
        down_(weights.down),
        down_bias_(&weights.down_bias),
        activation_(activation),
        gated_(gated) {}

  // [tokens, hidden], to be added to the residual stream; x is the normed residual, made for up().
  Product forward(const LinearInput& x, const LayerContext& context) const;

  const Linear& up() const { return up_; }
  const Linear& down() const { return down_; }

 private:
  LinearInput activated(const LinearInput& x, const LayerContext& context) const;

  Linear up_;
  Linear down_;
  const Buffer* down_bias_;
  Activation activation_;
  bool gated_;
};

}  // namespace flexq_ft
