#include "ft/kernels/embedding.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void check_range(ConstTensor values, int64_t limit, const char* what) {
  const int32_t* v = values.data<int32_t>();
  for (int64_t t = 0; t < values.count(); ++t) {
    FLEXQ_FT_CHECK_LE(0, v[t], "embedding: ", what, " of token ", t);
    FLEXQ_FT_CHECK_LT(v[t], limit, "embedding: ", what, " of token ", t);
  }
}

}  // namespace

void invokeEmbedding(Tensor out, ConstTensor ids, ConstTensor table, ConstTensor positions,
                     ConstTensor positional, Stream stream) {
  FLEXQ_FT_CHECK(is_float(out.dtype()), "embedding of ", out.dtype());
  FLEXQ_FT_CHECK_EQ(out.rank(), 2, "embedding: out ", out.shape());
  FLEXQ_FT_CHECK_EQ(ids.shape(), (Shape{out.dim(0)}), "embedding: ids of out ", out.shape());
  FLEXQ_FT_CHECK_EQ(ids.dtype(), DataType::kInt32, "embedding: ids");
  FLEXQ_FT_CHECK_EQ(table.rank(), 2, "embedding: table ", table.shape());
  FLEXQ_FT_CHECK_EQ(table.dim(1), out.dim(1), "embedding: hidden size of table and out");
  FLEXQ_FT_CHECK_EQ(table.dtype(), out.dtype(), "embedding: table and out");
  if (positional.defined()) {
    FLEXQ_FT_CHECK_EQ(positional.rank(), 2, "embedding: positional ", positional.shape());
    FLEXQ_FT_CHECK_EQ(positional.dim(1), out.dim(1), "embedding: hidden size of positional");
    FLEXQ_FT_CHECK_EQ(positional.dtype(), out.dtype(), "embedding: positional and out");
    FLEXQ_FT_CHECK_EQ(positions.shape(), ids.shape(), "embedding: positions and ids");
    FLEXQ_FT_CHECK_EQ(positions.dtype(), DataType::kInt32, "embedding: positions");
  }
  if (out.empty()) return;
  if (out.device() == Device::kCuda) {
    return gpu::embedding(out, ids, table, positions, positional, stream);
  }
  check_range(ids, table.dim(0), "id");
  if (positional.defined()) check_range(positions, positional.dim(0), "position");
  cpu::embedding(out, ids, table, positions, positional);
}

}  // namespace flexq_ft
