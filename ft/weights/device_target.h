// DeviceTarget: weights on the current GPU, row-major (Layout::kRowMajor) or in tiles of six bits.
#pragma once

#include "ft/weights/device_upload.h"
#include "ft/weights/weight_target.h"

namespace flexq_ft {

class DeviceTarget : public WeightTarget {
 public:
  // region_bytes: of the region that all weights are cut from; 0: each has memory of its own.
  explicit DeviceTarget(size_t region_bytes, size_t block_bytes = DeviceUpload::kBlockBytes);

  Device device() const override { return Device::kCuda; }
  Layout layout(Scheme scheme) const override;
  RowOrder paired(int64_t rows) const override;
  Buffer codes(const LinearWeight& weight) override;
  Buffer values(DataType dtype, Shape shape) override;
  size_t block_bytes() const override { return block_bytes_; }
  void* stage(size_t bytes) override;
  void put(const LinearWeight& weight, ConstTensor block, int64_t row, int64_t column,
           BlockOrder order) override;
  void put_tiles(const LinearWeight& weight, ConstTensor block, int64_t first) override;
  void put(const Buffer& buffer, ConstTensor block, int64_t first, RowOrder order) override;
  void put_scales(const LinearWeight& weight, Tensor block) override;
  void random(const LinearWeight& weight, const RandomFill& fill) override;
  void random(const Buffer& buffer, const RandomFill& fill, RowOrder order) override;
  void finish() override;

 private:
  DeviceUpload& upload();
  ConstTensor to_scratch(ConstTensor block);
  void put(Tensor matrix, ConstTensor block, int64_t row, int64_t column, BlockOrder order,
           RowOrder placed);
  void random(Tensor matrix, const RandomFill& fill, RowOrder order);
  template <typename Use>
  void random_blocks(DataType dtype, Shape shape, const RandomFill& fill, const Use& use);

  MemoryRegion region_;
  size_t block_bytes_;
  std::unique_ptr<DeviceUpload> upload_;  // from the first block on: random numbers need none
};

}  // namespace flexq_ft
