#include "ft/layers/ffn.h"

#include "ft/kernels/activation.h"

namespace flexq_ft {

Product Ffn::forward(const LinearInput& x, const LayerContext& context) const {
  const int64_t tokens = x.tokens();
  const Workspace& ws = context.workspace;

  const Product up = up_.forward(ws.up(tokens), x, context);
  context.mark("up", up_.weight().bytes());
  const LinearInput inter = down_.input(ws.inter(tokens), context);
  if (gated_) {
    invokeGatedActivation(inter, up, up_.weight().rows, activation_, context.stream());
  } else {
    invokeActivation(inter, up, activation_, context.stream());
  }
  context.mark("activation");
  const Product product = down_.forward(ws.product(tokens), inter, context);
  context.mark("down", down_.weight().bytes());
  return reduce_row_parallel(product, *down_bias_, context);
}

}  // namespace flexq_ft
