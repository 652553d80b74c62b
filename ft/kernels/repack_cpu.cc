#include <type_traits>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

// The same type is a copy, NaNs and all.
template <typename To, typename From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else {
    return from_float<To>(to_float(value));
  }
}

template <typename To, typename From>
void repack(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk) {
  const int64_t k = dst.dim(1);
  const From* from = static_cast<const From*>(src.raw());
  To* to = static_cast<To*>(dst.raw()) + row * k + column;
  if (row_major_nk) {
    flexq_kernels::parallel_ranges(src.count(), src.count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = convert<To>(from[i]);
    });
    return;
  }
  const int64_t columns = src.dim(0);
  const int64_t rows = src.dim(1);
  flexq_kernels::parallel_ranges(rows, src.count(), [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t r = begin; r < end; ++r) to[r * k + i] = convert<To>(from[i * rows + r]);
    }
  });
}

}  // namespace

void repack_rows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk) {
  if (size_of(dst.dtype()) == 1) {
    return repack<int8_t, int8_t>(dst, src, row, column, row_major_nk);
  }
  dispatch_float(dst.dtype(), [&](auto to) {
    dispatch_float(src.dtype(), [&](auto from) {
      repack<decltype(to), decltype(from)>(dst, src, row, column, row_major_nk);
    });
  });
}

void tile_scales(Tensor dst, ConstTensor src, int64_t k) {
  flexq_kernels::tile_scales(static_cast<uint16_t*>(dst.raw()),
                             static_cast<const uint16_t*>(src.raw()), src.dim(1), k);
}

}  // namespace flexq_ft::cpu
