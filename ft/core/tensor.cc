#include "ft/core/tensor.h"

namespace flexq_ft {

const char* to_string(Device device) { return device == Device::kCpu ? "cpu" : "cuda"; }

std::ostream& operator<<(std::ostream& out, Device device) { return out << to_string(device); }

Shape::Shape(std::initializer_list<int64_t> dims) {
  FLEXQ_FT_CHECK_LE(dims.size(), static_cast<size_t>(kMaxRank), "tensor rank");
  for (int64_t dim : dims) dims_[rank_++] = dim;
}

int64_t Shape::count() const {
  int64_t count = 1;
  for (int i = 0; i < rank_; ++i) count *= dims_[i];
  return count;
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && dims_ == other.dims_;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "[";
  for (int i = 0; i < shape.rank(); ++i) out << (i ? ", " : "") << shape[i];
  return out << "]";
}

template <bool kConst>
BasicTensor<kConst> BasicTensor<kConst>::rows(int64_t begin, int64_t end) const {
  FLEXQ_FT_CHECK_LE(1, shape_.rank(), "rows of a scalar");
  FLEXQ_FT_CHECK_LE(0, begin, "rows of ", shape_);
  FLEXQ_FT_CHECK_LE(begin, end, "rows of ", shape_);
  FLEXQ_FT_CHECK_LE(end, shape_[0], "rows of ", shape_);
  Shape rest;
  int64_t row = 1;
  for (int i = 1; i < shape_.rank(); ++i) row *= shape_[i];
  switch (shape_.rank()) {
    case 1:
      rest = {end - begin};
      break;
    case 2:
      rest = {end - begin, shape_[1]};
      break;
    case 3:
      rest = {end - begin, shape_[1], shape_[2]};
      break;
    default:
      rest = {end - begin, shape_[1], shape_[2], shape_[3]};
  }
  using Byte = std::conditional_t<kConst, const char, char>;
  const int64_t offset = begin * row * static_cast<int64_t>(size_of(dtype_));
  return BasicTensor(static_cast<Byte*>(data_) + offset, dtype_, rest, device_);
}

template class BasicTensor<false>;
template class BasicTensor<true>;

}  // namespace flexq_ft
