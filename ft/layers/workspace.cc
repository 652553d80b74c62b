#include "ft/layers/workspace.h"

namespace flexq_ft {

namespace {

Buffer matrix(DataType dtype, int64_t rows, int64_t columns) {
  return Buffer(dtype, Shape{rows, columns}, MemoryKind::kActivations);
}

}  // namespace

size_t WorkspaceSizes::bytes() const {
  const int64_t typed = 2 * hidden + 2 * attention + inter;
  const int64_t fp32 = qkv + up + hidden + quantized_groups;
  const int64_t row = typed * static_cast<int64_t>(size_of(dtype)) + fp32 * 4 + quantized_k;
  return static_cast<size_t>(tokens * row);
}

Workspace::Workspace(const WorkspaceSizes& sizes)
    : sizes_(sizes),
      residual_(matrix(sizes.dtype, sizes.tokens, sizes.hidden)),
      normed_(matrix(sizes.dtype, sizes.tokens, sizes.hidden)),
      qkv_(matrix(DataType::kFp32, sizes.tokens, sizes.qkv)),
      q_(matrix(sizes.dtype, sizes.tokens, sizes.attention)),
      attention_(matrix(sizes.dtype, sizes.tokens, sizes.attention)),
      up_(matrix(DataType::kFp32, sizes.tokens, sizes.up)),
      inter_(matrix(sizes.dtype, sizes.tokens, sizes.inter)),
      product_(matrix(DataType::kFp32, sizes.tokens, sizes.hidden)),
      codes_(matrix(DataType::kInt8, sizes.tokens, sizes.quantized_k)),
      act_scales_(matrix(DataType::kFp32, sizes.tokens, sizes.quantized_groups)) {}

Tensor Workspace::residual(int64_t tokens) const {
  return residual_.tensor(sizes_.dtype, {tokens, sizes_.hidden});
}

Tensor Workspace::normed(int64_t tokens) const {
  return normed_.tensor(sizes_.dtype, {tokens, sizes_.hidden});
}

Tensor Workspace::qkv(int64_t tokens) const {
  return qkv_.tensor(DataType::kFp32, {tokens, sizes_.qkv});
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

Tensor Workspace::act_scales(int64_t tokens, int64_t groups) const {
  return act_scales_.tensor(DataType::kFp32, {tokens, groups});
}

}  // namespace flexq_ft
