#include "ft/layers/attention.h"

#include "ft/kernels/attention.h"
#include "ft/kernels/rope.h"

namespace flexq_ft {

Product Attention::forward(const LinearInput& x, KvPages kv, const RaggedBatch& batch,
                           const LayerContext& context) const {
  const int64_t tokens = x.tokens();
  const Workspace& ws = context.workspace;
  const Tensor q = ws.q(tokens);

  const Product qkv = qkv_.forward(ws.qkv(tokens), x, context);
  invokeRopeAppend(q, kv, qkv, rope_table_, batch, context.stream());
  const LinearInput attended = o_.input(ws.attention(tokens), context);
  invokeAttention(attended, q, kv, batch, ws.attention_parts(), context.stream());
  return reduce_row_parallel(o_.forward(ws.product(tokens), attended, context), *o_bias_, context);
}

}  // namespace flexq_ft
