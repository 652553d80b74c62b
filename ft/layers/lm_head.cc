#include "ft/layers/lm_head.h"

#include "ft/kernels/gather_columns.h"

namespace flexq_ft {

LmHead::LmHead(const LinearWeight& weight, int64_t vocab_size, int64_t max_rows, int ranks,
               Device device)
    : linear_(weight), vocab_size_(vocab_size), local_columns_((vocab_size + ranks - 1) / ranks) {
  FLEXQ_FT_CHECK_LE(weight.n, local_columns_, weight.name);
  if (ranks == 1) return;
  const auto fp32 = [&](Shape shape) {
    return Buffer(DataType::kFp32, shape, MemoryKind::kActivations, device);
  };
  product_ = fp32({max_rows, weight.n});
  local_ = fp32({max_rows, local_columns_});
  gathered_ = fp32({ranks, max_rows, local_columns_});
}

size_t LmHead::gather_bytes(int64_t vocab_size, int64_t max_rows, int ranks) {
  if (ranks == 1) return 0;
  const int64_t columns = (vocab_size + ranks - 1) / ranks;
  return static_cast<size_t>(max_rows * columns * (ranks + 2)) * sizeof(float);
}

void LmHead::forward(Tensor logits, ConstTensor x, const LayerContext& context) const {
  FLEXQ_FT_CHECK_EQ(logits.dim(1), vocab_size_, "logits");
  if (context.comm.size() == 1) return multiply(logits, x, context);
  gather(logits, x, context);
}

void LmHead::multiply(Tensor y, ConstTensor x, const LayerContext& context) const {
  const Tensor values(const_cast<void*>(x.raw()), x.dtype(), x.shape(), x.device());
  const Product product = linear_.forward(y, linear_.input(values, context), context);
  if (y.device() == Device::kCuda) invokeFinishProduct(y, product, context.stream());
}

void LmHead::gather(Tensor logits, ConstTensor x, const LayerContext& context) const {
  const int64_t rows = x.dim(0);
  const int64_t n = linear_.weight().n;
  const int ranks = context.comm.size();
  const Tensor local = local_.tensor(DataType::kFp32, {rows, local_columns_});
  const Tensor gathered = gathered_.tensor(DataType::kFp32, {ranks, rows, local_columns_});
  if (n == local_columns_) {
    multiply(local, x, context);
  } else {  // the last ranks hold fewer columns, and all must send as many
    const Tensor product = product_.tensor(DataType::kFp32, {rows, n});
    multiply(product, x, context);
    invokePadColumns(local, product, context.stream());
  }
  context.comm.all_gather(gathered, local, context.stream());
  invokeGatherColumns(logits, gathered, context.stream());
}

}  // namespace flexq_ft
