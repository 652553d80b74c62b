#include "ft/weights/device_target.h"

#include <algorithm>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/kernels/repack.h"

namespace flexq_ft {

namespace {

Tensor matrix_of(const LinearWeight& weight) {
  return weight.codes.tensor(weight.format.storage, {weight.n, weight.k});
}

// One value a row.
Tensor column_of(const Buffer& buffer) {
  const Tensor all = buffer.tensor();
  return all.view({all.count(), 1});
}

}  // namespace

DeviceTarget::DeviceTarget(size_t region_bytes, size_t block_bytes)
    : region_(region_bytes, MemoryKind::kWeights, Device::kCuda), block_bytes_(block_bytes) {}

Buffer DeviceTarget::values(DataType dtype, Shape shape) { return region_.cut(dtype, shape); }

Layout DeviceTarget::layout(Scheme scheme) const {
  return scheme == Scheme::kW6Ax ? Layout::kFrag16x128Tiled : Layout::kRowMajor;
}

Buffer DeviceTarget::codes(const LinearWeight& weight) {
  if (weight.format.layout == Layout::kFrag16x128Tiled) {
    return values(weight.format.storage, {flexq_kernels::packed_bytes(weight.n, weight.k)});
  }
  return values(weight.format.storage, {weight.n, weight.k});
}

RowOrder DeviceTarget::paired(int64_t rows) const { return {rows % kBandRows == 0 ? rows : 0}; }

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
  put(matrix_of(weight), block, row, column, order, weight.rows);
}

void DeviceTarget::put_tiles(const LinearWeight& weight, ConstTensor block, int64_t first) {
  if (weight.rows.paired == 0) return put(weight.codes, block, first * block.dim(1), {});
  FLEXQ_FT_CHECK_EQ(block.raw(), upload().stage(), "a block that was not staged");
  invokePlaceTiles(weight.codes.tensor(), to_scratch(block), first, weight.k, weight.rows,
                   upload().stream());
}

void DeviceTarget::put(const Buffer& buffer, ConstTensor block, int64_t first, RowOrder order) {
  put(column_of(buffer), block.view({block.count(), 1}), first, 0, BlockOrder::kRows, order);
}

// Rows of the right type that stay together go where they belong at once; all else by way of the
// scratch.
void DeviceTarget::put(Tensor matrix, ConstTensor block, int64_t row, int64_t column,
                       BlockOrder order, RowOrder placed) {
  FLEXQ_FT_CHECK_EQ(block.raw(), upload().stage(), "a block that was not staged");
  if (order == BlockOrder::kRows && block.dtype() == matrix.dtype() && placed.paired == 0) {
    const Tensor rows = matrix.rows(row, row + block.dim(0));
    FLEXQ_FT_CHECK_EQ(rows.bytes(), block.bytes(), "a block of rows");
    return upload().copy(rows.raw(), rows.bytes());
  }
  invokeRepackRows(matrix, to_scratch(block), row, column, order == BlockOrder::kRows, placed,
                   upload().stream());
}

void DeviceTarget::put_scales(const LinearWeight& weight, Tensor block) {
  FLEXQ_FT_CHECK_EQ(block.raw(), upload().stage(), "a block that was not staged");
  weight.rows.arrange(block.data<Half>(), block.dim(0), block.dim(1));
  invokeTileScales(weight.scales.tensor(), to_scratch(block), weight.k, upload().stream());
}

ConstTensor DeviceTarget::to_scratch(ConstTensor block) {
  return {upload().copy_to_scratch(block.bytes()), block.dtype(), block.shape(), Device::kCuda};
}

void DeviceTarget::random(const LinearWeight& weight, const RandomFill& fill) {
  const bool tiled = weight.format.layout == Layout::kFrag16x128Tiled;
  if (!tiled) return random(matrix_of(weight), fill, weight.rows);
  if (weight.rows.paired == 0) return random(weight.codes, fill, {});
  const int64_t tiles = weight.codes.tensor().count() / flexq_kernels::kTileBytes;
  random_blocks(DataType::kUint8, {tiles, flexq_kernels::kTileBytes}, fill,
                [&](ConstTensor block, int64_t first) {
                  invokePlaceTiles(weight.codes.tensor(), block, first, weight.k, weight.rows, {});
                });
}

void DeviceTarget::random(const Buffer& buffer, const RandomFill& fill, RowOrder order) {
  random(column_of(buffer), fill, order);
}

void DeviceTarget::random(Tensor matrix, const RandomFill& fill, RowOrder order) {
  if (order.paired == 0) return invokeRandomFill(matrix, fill, 0, {});  // the default queue
  random_blocks(matrix.dtype(), matrix.shape(), fill, [&](ConstTensor block, int64_t row) {
    invokeRepackRows(matrix, block, row, 0, /*row_major_nk=*/true, order, {});
  });
}

// use(block, first row) for all of a matrix of such numbers, in blocks that lie on the GPU.
template <typename Use>
void DeviceTarget::random_blocks(DataType dtype, Shape shape, const RandomFill& fill,
                                 const Use& use) {
  const int64_t rows = shape[0], columns = shape[1];
  const auto row_bytes = static_cast<size_t>(columns) * size_of(dtype);
  const int64_t step = std::clamp<int64_t>(static_cast<int64_t>(block_bytes_ / row_bytes), 1, rows);
  const Buffer scratch(dtype, {step, columns}, MemoryKind::kWorkspace, Device::kCuda);
  for (int64_t row = 0; row < rows; row += step) {
    const Tensor block = scratch.tensor().rows(0, std::min(step, rows - row));
    invokeRandomFill(block, fill, row * columns, {});
    use(block, row);
  }
  cuda::synchronize({});  // before the scratch goes
}

void DeviceTarget::finish() {
  if (upload_) upload_->finish();
  cuda::synchronize({});
}

}  // namespace flexq_ft
