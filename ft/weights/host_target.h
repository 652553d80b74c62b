// HostTarget: weights in the CPU's layouts (ft/kernels/gemm.h).
#pragma once

#include "ft/weights/weight_target.h"

namespace flexq_ft {

class HostTarget : public WeightTarget {
 public:
  Device device() const override { return Device::kCpu; }
  Layout layout(Scheme scheme) const override;
  RowOrder paired(int64_t) const override { return {}; }
  Buffer codes(const LinearWeight& weight) override;
  size_t block_bytes() const override;  // no limit: a panel is made of whole columns
  void* stage(size_t bytes) override;
  void put(const LinearWeight& weight, ConstTensor block, int64_t row, int64_t column,
           BlockOrder order) override;
  void put_tiles(const LinearWeight& weight, ConstTensor block, int64_t first) override;
  void put(const Buffer& buffer, ConstTensor block, int64_t first, RowOrder order) override;
  void put_scales(const LinearWeight& weight, Tensor block) override;
  void random(const LinearWeight& weight, const RandomFill& fill) override;
  void random(const Buffer& buffer, const RandomFill& fill, RowOrder order) override;
  void finish() override {}

 private:
  Buffer block_;
};

}  // namespace flexq_ft
