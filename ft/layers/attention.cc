#include "ft/layers/attention.h"

#include "ft/kernels/attention.h"
#include "ft/kernels/rope.h"

namespace flexq_ft {

void Attention::forward(Tensor residual, ConstTensor x, KvPages kv, const RaggedBatch& batch,
                        const LayerContext& context) const {
  const int64_t tokens = x.dim(0);
  const Workspace& ws = context.workspace;
  const Tensor qkv = ws.qkv(tokens);
  const Tensor q = ws.q(tokens);
  const Tensor attended = ws.attention(tokens);
  const Tensor product = ws.product(tokens);

  qkv_.forward(qkv, x, context);
  invokeRopeAppend(q, kv, qkv, rope_table_, batch, context.stream);
  invokeAttention(attended, q, kv, batch, context.stream);
  o_.forward(product, attended, context);
  add_row_parallel(residual, product, *o_bias_, context);
}

}  // namespace flexq_ft
