#include "ft/kernels/paged_kv.h"

namespace flexq_ft {

namespace {

void check_shapes(const RaggedBatch& batch, const KvPages& kv) {
  FLEXQ_FT_CHECK(is_float(kv.k.dtype()), "KV cache of ", kv.k.dtype());
  FLEXQ_FT_CHECK_EQ(kv.k.rank(), 4, "KV cache: k ", kv.k.shape());
  FLEXQ_FT_CHECK_EQ(kv.k.dim(2), kPageTokens, "KV cache: tokens of a page");
  FLEXQ_FT_CHECK_EQ(kv.v.shape(), kv.k.shape(), "KV cache: v and k");
  FLEXQ_FT_CHECK_EQ(kv.v.dtype(), kv.k.dtype(), "KV cache: v and k");
  const int64_t sequences = batch.sequences();
  for (const ConstTensor* t : {&batch.positions, &batch.offsets, &batch.context, &batch.pages}) {
    FLEXQ_FT_CHECK_EQ(t->dtype(), DataType::kInt32, "ragged batch: tensor ", t->shape());
  }
  FLEXQ_FT_CHECK_EQ(batch.context.rank(), 1, "ragged batch: context ", batch.context.shape());
  FLEXQ_FT_CHECK_EQ(batch.offsets.shape(), (Shape{sequences + 1}), "ragged batch: offsets");
  FLEXQ_FT_CHECK_EQ(batch.pages.rank(), 2, "ragged batch: pages ", batch.pages.shape());
  FLEXQ_FT_CHECK_EQ(batch.pages.dim(0), sequences, "ragged batch: rows of pages");
}

void check_sequence(const RaggedBatch& batch, int64_t s, int64_t num_pages) {
  const int32_t* offsets = batch.offsets.data<int32_t>();
  const int32_t* positions = batch.positions.data<int32_t>();
  const int64_t context = batch.context.data<int32_t>()[s];
  FLEXQ_FT_CHECK_LE(0, context, "ragged batch: context of sequence ", s);
  for (int64_t t = offsets[s]; t < offsets[s + 1]; ++t) {
    FLEXQ_FT_CHECK_EQ(positions[t], context + t - offsets[s], "ragged batch: position of token ", t,
                      " of sequence ", s);
  }
  if (offsets[s] == offsets[s + 1]) return;
  const int64_t length = context + offsets[s + 1] - offsets[s];
  const int64_t used = (length + kPageTokens - 1) / kPageTokens;
  FLEXQ_FT_CHECK_LE(used, batch.pages.dim(1), "ragged batch: pages of sequence ", s);
  const int32_t* pages = batch.pages.data<int32_t>() + s * batch.pages.dim(1);
  for (int64_t i = 0; i < used; ++i) {
    FLEXQ_FT_CHECK_LE(0, pages[i], "ragged batch: page ", i, " of sequence ", s);
    FLEXQ_FT_CHECK_LT(pages[i], num_pages, "ragged batch: page ", i, " of sequence ", s);
  }
}

}  // namespace

void check_ragged_batch(const RaggedBatch& batch, const KvPages& kv) {
  check_shapes(batch, kv);
  FLEXQ_FT_CHECK_LE(batch.decodes, batch.sequences(), "ragged batch: one-token sequences");
  if (batch.offsets.device() == Device::kCuda) return;
  const int64_t sequences = batch.sequences();
  const int32_t* offsets = batch.offsets.data<int32_t>();
  FLEXQ_FT_CHECK_EQ(offsets[0], 0, "ragged batch: first offset");
  // Before any position is read: with sorted offsets, all lie within the tokens.
  FLEXQ_FT_CHECK_EQ(offsets[sequences], batch.positions.count(), "ragged batch: last offset");
  for (int64_t s = 0; s < sequences; ++s) {
    FLEXQ_FT_CHECK_LE(offsets[s], offsets[s + 1], "ragged batch: offsets of sequence ", s);
  }
  for (int64_t s = 0; s < sequences; ++s) check_sequence(batch, s, kv.k.dim(0));
}

}  // namespace flexq_ft
