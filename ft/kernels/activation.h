// Feed-forward activations: fp32 in, rounded once to the activation type on the store. Gelu is the
// tanh approximation, as in FasterTransformer ("gelu_new", "gelu_pytorch_tanh" in Hugging Face).
#pragma once

#include "ft/core/model_config.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// out [tokens, inter] = act(gate) * up, where gate_up [tokens, 2 * inter] fp32 holds gate, then up.
void invokeGatedActivation(Tensor out, ConstTensor gate_up, Activation activation, Stream stream);

// out [tokens, inter] = act(x), x [tokens, inter] fp32.
void invokeActivation(Tensor out, ConstTensor x, Activation activation, Stream stream);

}  // namespace flexq_ft
