#include "ft/kernels/attention.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

void invokeAttention(Tensor out, ConstTensor q, KvPages kv, const RaggedBatch& batch, Stream) {
  check_ragged_batch(batch, kv);
  FLEXQ_FT_CHECK_EQ(q.rank(), 2, "attention: q ", q.shape());
  FLEXQ_FT_CHECK_EQ(q.dim(0), batch.positions.dim(0), "attention: tokens of q");
  FLEXQ_FT_CHECK_EQ(out.shape(), q.shape(), "attention: out and q");
  FLEXQ_FT_CHECK_EQ(q.dtype(), kv.k.dtype(), "attention: q and the cache");
  FLEXQ_FT_CHECK_EQ(out.dtype(), q.dtype(), "attention: out and q");
  const int64_t group_columns = kv.k.dim(1) * kv.k.dim(3);
  FLEXQ_FT_CHECK_LT(0, group_columns, "attention: KV heads of the cache ", kv.k.shape());
  FLEXQ_FT_CHECK_EQ(q.dim(1) % group_columns, 0, "attention: columns of q ", q.shape(),
                    " for the cache ", kv.k.shape());
  if (out.empty()) return;
  cpu::attention(out, q, kv, batch);
}

}  // namespace flexq_ft
