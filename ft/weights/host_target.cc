#include "ft/weights/host_target.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/kernels/gemm.h"
#include "ft/kernels/repack.h"

namespace flexq_ft {

Layout HostTarget::layout(Scheme scheme) const {
  if (scheme == Scheme::kW6Ax) return Layout::kFrag16x128;
  return scheme == Scheme::kW8A8 ? Layout::kPanelPairs : Layout::kPanel;
}

Buffer HostTarget::codes(const LinearWeight& weight) {
  const DataFormat& format = weight.format;
  if (format.layout == Layout::kFrag16x128) {
    return Buffer(static_cast<size_t>(flexq_kernels::packed_bytes(weight.n, weight.k)),
                  MemoryKind::kWeights);
  }
  Buffer buffer(format.layout == Layout::kPanelPairs
                    ? panel_pairs_bytes(weight.n, weight.k)
                    : panel_bytes(weight.n, weight.k, format.storage),
                MemoryKind::kWeights);
  std::memset(buffer.data(), 0, buffer.bytes());  // the rows that pad it stay zero
  return buffer;
}

size_t HostTarget::block_bytes() const { return std::numeric_limits<int64_t>::max(); }

void* HostTarget::stage(size_t bytes) {
  if (block_.bytes() < bytes) {
    block_ = Buffer();  // the old one first: both are not needed
    block_ = Buffer(bytes, MemoryKind::kWorkspace);
  }
  return block_.data();
}

void HostTarget::put(const LinearWeight& weight, ConstTensor block, int64_t row, int64_t column,
                     BlockOrder order) {
  FLEXQ_FT_CHECK_EQ(column, 0, weight.name, ": a panel takes whole columns");
  const Tensor panel = weight.codes.tensor(weight.format.storage, {weight.n, weight.k});
  if (weight.format.layout == Layout::kPanelPairs) {
    FLEXQ_FT_CHECK(order == BlockOrder::kRows, weight.name);
    return repack_panel_pairs(panel, block, row);
  }
  repack_panel(panel, block, row, order == BlockOrder::kRows);
}

void HostTarget::put_tiles(const LinearWeight& weight, ConstTensor block, int64_t first) {
  put(weight.codes, block, first * block.dim(1), {});
}

void HostTarget::put(const Buffer& buffer, ConstTensor block, int64_t first, RowOrder order) {
  const Tensor all = buffer.tensor();
  invokeRepackRows(all.view({all.count(), 1}), block.view({block.count(), 1}), first, 0,
                   /*row_major_nk=*/true, order, {});
}

void HostTarget::put_scales(const LinearWeight& weight, Tensor block) {
  put(weight.scales, block, 0, {});
}

void HostTarget::random(const LinearWeight& weight, const RandomFill& fill) {
  if (weight.format.layout == Layout::kFrag16x128) return random(weight.codes, fill, {});
  constexpr int64_t kChunk = 1 << 22;
  const DataType dtype = weight.format.storage;
  const int64_t step = std::max<int64_t>(1, kChunk / weight.k);
  for (int64_t row = 0; row < weight.n; row += step) {
    const int64_t rows = std::min(step, weight.n - row);
    const Tensor block(stage(static_cast<size_t>(rows * weight.k) * size_of(dtype)), dtype,
                       {rows, weight.k});
    invokeRandomFill(block, fill, row * weight.k, {});
    put(weight, block, row, 0, BlockOrder::kRows);
  }
}

void HostTarget::random(const Buffer& buffer, const RandomFill& fill, RowOrder) {
  invokeRandomFill(buffer.tensor(), fill, 0, {});
}

}  // namespace flexq_ft
