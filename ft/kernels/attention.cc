#include "ft/kernels/attention.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

size_t attention_workspace_bytes(const AttentionSizes& sizes, Device device) {
  if (device == Device::kCpu) return 0;
  return gpu::attention_workspace_bytes(sizes);
}

void invokeAttention(const LinearInput& out, ConstTensor q, KvPages kv, const RaggedBatch& batch,
                     Tensor workspace, Stream stream) {
  check_ragged_batch(batch, kv);
  FLEXQ_FT_CHECK_EQ(q.rank(), 2, "attention: q ", q.shape());
  FLEXQ_FT_CHECK_EQ(q.dim(0), batch.positions.dim(0), "attention: tokens of q");
  FLEXQ_FT_CHECK_EQ(q.dtype(), kv.k.dtype(), "attention: q and the cache");
  check_linear_input(out, q.dim(0), q.dim(1));
  FLEXQ_FT_CHECK_EQ(out.dtype, q.dtype(), "attention: out and q");
  const int64_t group_columns = kv.k.dim(1) * kv.k.dim(3);
  FLEXQ_FT_CHECK_LT(0, group_columns, "attention: KV heads of the cache ", kv.k.shape());
  FLEXQ_FT_CHECK_EQ(q.dim(1) % group_columns, 0, "attention: columns of q ", q.shape(),
                    " for the cache ", kv.k.shape());
  if (q.empty()) return;
  if (q.device() == Device::kCuda) return gpu::attention(out, q, kv, batch, workspace, stream);
  cpu::attention(out.values, q, kv, batch);
  quantize_values(out, stream);
}

}  // namespace flexq_ft
