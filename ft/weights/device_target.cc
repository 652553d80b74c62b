#include "ft/weights/device_target.h"

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/kernels/repack.h"

namespace flexq_ft {

namespace {

Tensor matrix_of(const LinearWeight& weight) {
  return weight.codes.tensor(weight.format.storage, {weight.n, weight.k});
}

}  // namespace

DeviceTarget::DeviceTarget(size_t region_bytes, size_t block_bytes)
    : region_(std::make_unique<MemoryRegion>(region_bytes, MemoryKind::kWeights, Device::kCuda)),
      block_bytes_(block_bytes) {}

Buffer DeviceTarget::values(DataType dtype, Shape shape) const {
  return region_->cut(dtype, shape);
}

Layout DeviceTarget::layout(Scheme scheme) const {
  return scheme == Scheme::kW6Ax ? Layout::kFrag16x128Tiled : Layout::kRowMajor;
}

Buffer DeviceTarget::codes(const LinearWeight& weight) const {
  if (weight.format.layout == Layout::kFrag16x128Tiled) {
    return values(weight.format.storage, {flexq_kernels::packed_bytes(weight.n, weight.k)});
  }
  return values(weight.format.storage, {weight.n, weight.k});
}

DeviceUpload& DeviceTarget::upload() {
  if (!upload_) upload_ = std::make_unique<DeviceUpload>(block_bytes_);
  return *upload_;
}

void* DeviceTarget::stage(size_t bytes) {
  FLEXQ_FT_CHECK_LE(bytes, block_bytes(), "a block of a weight");
  return upload().stage();
}

void DeviceTarget::put(const LinearWeight& weight, ConstTensor block, int64_t row, int64_t column,
                       BlockOrder order) {
  put(matrix_of(weight), block, row, column, order);
}

void DeviceTarget::put(const Buffer& buffer, ConstTensor block, int64_t first) {
  const Tensor all = buffer.tensor();
  put(all.view({all.count(), 1}), block.view({block.count(), 1}), first, 0, BlockOrder::kRows);
}

// Rows of the right type go where they belong at once; all else by way of the scratch.
void DeviceTarget::put(Tensor matrix, ConstTensor block, int64_t row, int64_t column,
                       BlockOrder order) {
  FLEXQ_FT_CHECK_EQ(block.raw(), upload().stage(), "a block that was not staged");
  if (order == BlockOrder::kRows && block.dtype() == matrix.dtype()) {
    const Tensor rows = matrix.rows(row, row + block.dim(0));
    FLEXQ_FT_CHECK_EQ(rows.bytes(), block.bytes(), "a block of rows");
    return upload().copy(rows.raw(), rows.bytes());
  }
  invokeRepackRows(matrix, to_scratch(block), row, column, order == BlockOrder::kRows,
                   upload().stream());
}

void DeviceTarget::put_scales(const LinearWeight& weight, ConstTensor block) {
  FLEXQ_FT_CHECK_EQ(block.raw(), upload().stage(), "a block that was not staged");
  invokeTileScales(weight.scales.tensor(), to_scratch(block), weight.k, upload().stream());
}

ConstTensor DeviceTarget::to_scratch(ConstTensor block) {
  return {upload().copy_to_scratch(block.bytes()), block.dtype(), block.shape(), Device::kCuda};
}

void DeviceTarget::random(const LinearWeight& weight, const RandomFill& fill) {
  random(weight.codes, fill);
}

void DeviceTarget::random(const Buffer& buffer, const RandomFill& fill) {
  invokeRandomFill(buffer.tensor(), fill, 0, {});  // the default queue
}

void DeviceTarget::finish() {
  if (upload_) upload_->finish();
  cuda::synchronize({});
}

}  // namespace flexq_ft
