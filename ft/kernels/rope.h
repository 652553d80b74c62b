// Splits the QKV product, rotates Q and K (neox halves), and appends K and V to their pages.
#pragma once

#include "ft/core/buffer.h"
#include "ft/core/model_config.h"
#include "ft/core/stream.h"
#include "ft/kernels/paged_kv.h"
#include "ft/kernels/product.h"

namespace flexq_ft {

// cos and sin of every position: [positions, head_dim] fp32, cos in the first half of a row, sin in
// the second. Linear and Llama-3 scaling as Hugging Face computes them.
Buffer make_rope_table(const RopeConfig& rope, int64_t head_dim, int64_t positions);

//   q    [tokens, heads * head_dim]  the compute type, rotated
//   qkv  [tokens, (heads + 2 * kv_heads) * head_dim]: q heads, k heads, v heads
//   rope the table, or undefined for learned positions
// q, k and v are rounded to the compute type, rotated, and rounded again (docs/numerics.md).
void invokeRopeAppend(Tensor q, KvPages kv, const Product& qkv, ConstTensor rope,
                      const RaggedBatch& batch, Stream stream);

}  // namespace flexq_ft
