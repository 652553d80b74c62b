#include "ft/layers/ffn.h"

#include "ft/kernels/activation.h"

namespace flexq_ft {

Product Ffn::forward(const LinearInput& x, const LayerContext& context) const {
  const LinearInput inter = activated(x, context);
  const Product product = down_.forward(context.workspace.product(x.tokens()), inter, context);
  context.mark("down", down_.weight().bytes());
  return reduce_row_parallel(product, *down_bias_, context);
}

// What down() reads: of the up product, or where that ends with the activation, of its results.
LinearInput Ffn::activated(const LinearInput& x, const LayerContext& context) const {
  const int64_t tokens = x.tokens();
  const Workspace& ws = context.workspace;
  LinearInput inter = down_.input(ws.inter(tokens), context);
  if (gated_ && up_.can_gate(tokens, context)) {
    inter.values = ws.inter(tokens);
    up_.forward_gated(inter.values, x, activation_, context);
    context.mark("up", up_.weight().bytes());
    quantize_values(inter, context.stream());
  } else {
    const Product up = up_.forward(ws.up(tokens), x, context);
    context.mark("up", up_.weight().bytes());
    if (gated_) {
      invokeGatedActivation(inter, up, up_.weight().rows, activation_, context.stream());
    } else {
      invokeActivation(inter, up, activation_, context.stream());
    }
  }
  context.mark("activation");
  return inter;
}

}  // namespace flexq_ft
