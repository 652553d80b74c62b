// Feed-forward activations: computed in fp32, rounded once to the activation type on the store, and
// quantised where out asks for it. Gelu is the tanh approximation, as in FasterTransformer
// ("gelu_new", "gelu_pytorch_tanh" in Hugging Face).
//   out [tokens, inter]
#pragma once

#include "ft/core/model_config.h"
#include "ft/core/row_order.h"
#include "ft/kernels/product.h"

namespace flexq_ft {

// out = act(gate) * up, where gate_up [tokens, 2 * inter] holds gate, then up, in this order; a CPU
// takes no pairs.
void invokeGatedActivation(const LinearInput& out, const Product& gate_up, RowOrder order,
                           Activation activation, Stream stream);

// out = act(x), x [tokens, inter].
void invokeActivation(const LinearInput& out, const Product& x, Activation activation,
                      Stream stream);

}  // namespace flexq_ft
