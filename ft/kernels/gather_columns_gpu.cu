#include <algorithm>

#include "ft/core/check.h"
#include "ft/kernels/launch.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // loads in flight
constexpr int64_t kMaxGridRows = 65535;

// A block has kThreads * kPerThread columns of the output; grid y strides over the rows.
__global__ void __launch_bounds__(kThreads)
    gather_columns_kernel(float* out, const float* parts, int rows, int columns, int local) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = blockIdx.x * kThreads * kPerThread + threadIdx.x;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    float values[kPerThread] = {};
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = first + i * kThreads;
      if (column >= columns) continue;
      const int rank = column / local;
      values[i] = parts[(static_cast<int64_t>(rank) * rows + row) * local + column - rank * local];
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = first + i * kThreads;
      if (column < columns) out[static_cast<int64_t>(row) * columns + column] = values[i];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    pad_columns_kernel(float* out, const float* x, int rows, int local, int n) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = blockIdx.x * kThreads * kPerThread + threadIdx.x;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = first + i * kThreads;
      if (column >= local) continue;
      out[static_cast<int64_t>(row) * local + column] =
          column < n ? x[static_cast<int64_t>(row) * n + column] : 0.0f;
    }
  }
}

// Blocks over [rows, columns]; the kernels count both in int.
dim3 grid_of(int64_t rows, int64_t columns) {
  FLEXQ_FT_CHECK_LT(rows, int64_t{1} << 30, "rows of columns");
  FLEXQ_FT_CHECK_LT(columns, int64_t{1} << 30, "columns");
  constexpr int64_t kColumns = kThreads * kPerThread;
  return dim3(static_cast<unsigned>((columns + kColumns - 1) / kColumns),
              static_cast<unsigned>(std::min(rows, kMaxGridRows)));
}

}  // namespace

void pad_columns(Tensor out, ConstTensor x, Stream stream) {
  const dim3 grid = grid_of(out.dim(0), out.dim(1));
  launch(pad_columns_kernel, grid, dim3(kThreads), 0, stream, out.data<float>(),
         static_cast<const float*>(x.raw()), static_cast<int>(out.dim(0)),
         static_cast<int>(out.dim(1)), static_cast<int>(x.dim(1)));
}

void gather_columns(Tensor out, ConstTensor parts, Stream stream) {
  const dim3 grid = grid_of(out.dim(0), out.dim(1));
  launch(gather_columns_kernel, grid, dim3(kThreads), 0, stream, out.data<float>(),
         parts.data<float>(), static_cast<int>(out.dim(0)), static_cast<int>(out.dim(1)),
         static_cast<int>(parts.dim(2)));
}

}  // namespace flexq_ft::gpu
