#include "ft/layers/attention.h"

#include "ft/kernels/attention.h"
#include "ft/kernels/rope.h"

namespace flexq_ft {

Product Attention::forward(const LinearInput& x, KvPages kv, const RaggedBatch& batch,
                           const LayerContext& context) const {
  const int64_t tokens = x.tokens();
  const Workspace& ws = context.workspace;
  const Tensor q = ws.q(tokens);

  const bool rounded = qkv_.can_round(tokens, context);
  const Product qkv = qkv_.forward(rounded ? ws.rounded_qkv(tokens) : ws.qkv(tokens), x, context);
  context.mark("qkv", qkv_.weight().bytes());
  invokeRopeAppend(q, kv, qkv, rope_table_, batch, context.stream());
  context.mark("rope");
  const LinearInput attended = o_.input(ws.attention(tokens), context);
  invokeAttention(attended, q, kv, batch, ws.attention_parts(), context.stream());
  context.mark("attention");
  const Product product = o_.forward(ws.product(tokens), attended, context);
  context.mark("o", o_.weight().bytes());
  return reduce_row_parallel(product, *o_bias_, context);
}

}  // namespace flexq_ft
