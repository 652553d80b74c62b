#include "ft/layers/ffn.h"

#include "ft/kernels/activation.h"

namespace flexq_ft {

void Ffn::forward(Tensor residual, ConstTensor x, const LayerContext& context) const {
  const int64_t tokens = x.dim(0);
  const Tensor up = context.workspace.up(tokens);
  const Tensor inter = context.workspace.inter(tokens);
  const Tensor product = context.workspace.product(tokens);

  up_.forward(up, x, context);
  if (gated_) {
    invokeGatedActivation(inter, up, activation_, context.stream);
  } else {
    invokeActivation(inter, up, activation_, context.stream);
  }
  down_.forward(product, inter, context);
  add_row_parallel(residual, product, *down_bias_, context);
}

}  // namespace flexq_ft
