#include "ft/layers/workspace.h"

#include "flexq_kernels/gpu/gemm.h"
#include "ft/kernels/attention.h"

namespace flexq_ft {

namespace {

// Tokens that scales are kept for: padded as products of groups on a GPU read them.
int64_t scale_rows(const WorkspaceSizes& sizes) {
  return flexq_kernels::gpu::scale_stride_of(sizes.tokens);
}

size_t attention_bytes(const WorkspaceSizes& sizes) {
  if (sizes.head_dim == 0) return 0;
  AttentionSizes attention;
  attention.tokens = sizes.decodes;
  attention.heads = sizes.attention / sizes.head_dim;
  attention.kv_heads = (sizes.qkv / sizes.head_dim - attention.heads) / 2;
  attention.head_dim = sizes.head_dim;
  attention.positions = sizes.positions;
  return attention_workspace_bytes(attention, sizes.device);
}

}  // namespace

size_t WorkspaceSizes::bytes() const {
  const int64_t typed = 2 * hidden + 2 * attention + inter;
  const int64_t fp32 = qkv + up + hidden;
  const int64_t row = typed * static_cast<int64_t>(size_of(dtype)) + fp32 * 4 + quantized_k;
  return static_cast<size_t>(tokens * row + scale_rows(*this) * quantized_groups * 4) +
         attention_bytes(*this);
}

Workspace::Workspace(const WorkspaceSizes& sizes) : sizes_(sizes) {
  const auto matrix = [&](DataType dtype, int64_t columns) {
    return Buffer(dtype, Shape{sizes.tokens, columns}, MemoryKind::kActivations, sizes.device);
  };
  residual_ = matrix(sizes.dtype, sizes.hidden);
  normed_ = matrix(sizes.dtype, sizes.hidden);
  qkv_ = matrix(DataType::kFp32, sizes.qkv);
  q_ = matrix(sizes.dtype, sizes.attention);
  attention_ = matrix(sizes.dtype, sizes.attention);
  up_ = matrix(DataType::kFp32, sizes.up);
  inter_ = matrix(sizes.dtype, sizes.inter);
  product_ = matrix(DataType::kFp32, sizes.hidden);
  codes_ = matrix(DataType::kInt8, sizes.quantized_k);
  act_scales_ = Buffer(DataType::kFp32, {scale_rows(sizes), sizes.quantized_groups},
                       MemoryKind::kActivations, sizes.device);
  attention_parts_ = Buffer(attention_bytes(sizes), MemoryKind::kActivations, sizes.device);
}

Tensor Workspace::residual(int64_t tokens) const {
  return residual_.tensor(sizes_.dtype, {tokens, sizes_.hidden});
}

Tensor Workspace::normed(int64_t tokens) const {
  return normed_.tensor(sizes_.dtype, {tokens, sizes_.hidden});
}

Tensor Workspace::qkv(int64_t tokens) const {
  return qkv_.tensor(DataType::kFp32, {tokens, sizes_.qkv});
}

Tensor Workspace::rounded_qkv(int64_t tokens) const {
  return qkv_.tensor(sizes_.dtype, {tokens, sizes_.qkv});
}

Tensor Workspace::q(int64_t tokens) const {
  return q_.tensor(sizes_.dtype, {tokens, sizes_.attention});
}

Tensor Workspace::attention(int64_t tokens) const {
  return attention_.tensor(sizes_.dtype, {tokens, sizes_.attention});
}

Tensor Workspace::up(int64_t tokens) const {
  return up_.tensor(DataType::kFp32, {tokens, sizes_.up});
}

Tensor Workspace::inter(int64_t tokens) const {
  return inter_.tensor(sizes_.dtype, {tokens, sizes_.inter});
}

Tensor Workspace::product(int64_t tokens) const {
  return product_.tensor(DataType::kFp32, {tokens, sizes_.hidden});
}

Tensor Workspace::codes(int64_t tokens, int64_t k) const {
  return codes_.tensor(DataType::kInt8, {tokens, k});
}

Tensor Workspace::act_scales(int64_t rows, int64_t columns) const {
  return act_scales_.tensor(DataType::kFp32, {rows, columns});
}

Tensor Workspace::attention_parts() const {
  return attention_parts_.defined() ? attention_parts_.tensor() : Tensor();
}

}  // namespace flexq_ft
