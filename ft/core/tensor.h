// Tensor and ConstTensor: contiguous row-major views (pointer, dtype, shape) that own nothing.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <type_traits>

#include "ft/core/check.h"
#include "ft/core/dtype.h"

namespace flexq_ft {

enum class Device : uint8_t { kCpu, kCuda };

const char* to_string(Device device);
std::ostream& operator<<(std::ostream& out, Device device);

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t count() const;  // product of the dims; 1 for rank 0
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape);

template <bool kConst>
class BasicTensor {
 public:
  using Void = std::conditional_t<kConst, const void, void>;
  template <typename T>
  using Elem = std::conditional_t<kConst, const T, T>;

  BasicTensor() = default;
  BasicTensor(Void* data, DataType dtype, Shape shape, Device device = Device::kCpu)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}

  // A mutable view is usable wherever a const one is asked for.
  template <bool kOther, typename = std::enable_if_t<kConst && !kOther>>
  BasicTensor(const BasicTensor<kOther>& other)
      : BasicTensor(other.raw(), other.dtype(), other.shape(), other.device()) {}

  bool empty() const { return data_ == nullptr || shape_.count() == 0; }
  bool defined() const { return data_ != nullptr; }
  Void* raw() const { return data_; }
  DataType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int rank() const { return shape_.rank(); }
  int64_t count() const { return shape_.count(); }
  size_t bytes() const { return static_cast<size_t>(count()) * size_of(dtype_); }

  // The data as T, whose size must be the dtype's (int8_t, Half, BFloat16, float, int32_t, …).
  template <typename T>
  Elem<T>* data() const {
    FLEXQ_FT_CHECK_EQ(sizeof(T), size_of(dtype_), "tensor of ", dtype_);
    return static_cast<Elem<T>*>(data_);
  }

  // Rows [begin, end) of the first axis.
  BasicTensor rows(int64_t begin, int64_t end) const;

  // The same data under another shape with the same count.
  BasicTensor view(Shape shape) const {
    FLEXQ_FT_CHECK_EQ(shape.count(), count(), "view of ", shape_, " as ", shape);
    return BasicTensor(data_, dtype_, shape, device_);
  }

 private:
  Void* data_ = nullptr;
  Shape shape_;
  DataType dtype_ = DataType::kFp32;
  Device device_ = Device::kCpu;
};

using Tensor = BasicTensor<false>;
using ConstTensor = BasicTensor<true>;

}  // namespace flexq_ft
