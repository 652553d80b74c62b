#include <algorithm>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

void pad_columns(Tensor out, ConstTensor x) {
  const int64_t local = out.dim(1);
  const int64_t n = x.dim(1);
  flexq_kernels::parallel_ranges(out.dim(0), out.count(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* to = out.data<float>() + row * local;
      std::copy_n(x.data<float>() + row * n, n, to);
      std::fill(to + n, to + local, 0.0f);
    }
  });
}

void gather_columns(Tensor out, ConstTensor parts) {
  const int64_t rows = out.dim(0);
  const int64_t columns = out.dim(1);
  const int64_t local = parts.dim(2);
  flexq_kernels::parallel_ranges(rows, out.count(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t first = 0, rank = 0; first < columns; first += local, ++rank) {
        std::copy_n(parts.data<float>() + (rank * rows + row) * local,
                    std::min(local, columns - first), out.data<float>() + row * columns + first);
      }
    }
  });
}

}  // namespace flexq_ft::cpu
