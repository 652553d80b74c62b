// Causal attention of a ragged batch over the paged cache, prefill and decode alike.
//   out [tokens, heads * head_dim], quantised where it asks for it
//   q   [tokens, heads * head_dim]  the compute type; afterwards undefined on a GPU where out has
//       codes and no values: kernels that cannot make the codes themselves leave the values there
// Token i of a sequence sees its pages' positions 0 … context + i. Query head h reads KV head
// h / (heads / kv_heads). Softmax in fp32 over 1 / sqrt(head_dim). A token's result does
// not depend on which others are in the batch, nor on threads, nor on how a prompt is cut into
// chunks; what it does not see may be NaN or infinite.
//
// On the CPU the calling thread keeps scratch for the scores of all threads between calls: nothing
// is allocated once the longest context was seen. On a GPU the workspace holds the partial results
// of the parts that a sequence's positions are cut into; the cut depends on its length and the
// heads alone. What
// the cache has of decodes' earlier tokens must lie before the queue's last full_edge, as the
// batch.
#pragma once

#include "ft/core/stream.h"
#include "ft/kernels/paged_kv.h"
#include "ft/kernels/product.h"

namespace flexq_ft {

struct AttentionSizes {
  int64_t tokens = 0;  // of one-token sequences, at most
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t positions = 0;  // of a sequence, at most
};

// Bytes of the workspace; 0 on the CPU.
size_t attention_workspace_bytes(const AttentionSizes& sizes, Device device);

void invokeAttention(const LinearInput& out, ConstTensor q, KvPages kv, const RaggedBatch& batch,
                     Tensor workspace, Stream stream);

}  // namespace flexq_ft
