#include "ft/kernels/quantize.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

// out may be y.values. An absent bias is +0 here, as on the CPU.
template <typename In, bool kAligned>
__global__ void __launch_bounds__(kFlatThreads)
    finish_product_kernel(float* out, ProductView<In> y) {
  const int columns = static_cast<int>(y.columns);
  const int column = static_cast<int>(blockIdx.y) * kFlatThreads * kVector + row_column(0);
  pdl_launch_dependents();
  prefetch_scales(y, column);
  pdl_wait();
  const int64_t token = blockIdx.x;
  const Vector<In> raw = load_vector(y.values + token * columns, column, columns, kAligned);
  float v[kVector];
  finish_vector(v, y, raw, token_scale(y, token), column, kAligned, 0.0f);
  store_vector(out + token * columns, column, columns, kAligned, rounded_vector<float>(v));
}

// A block takes one token: its whole row, or a part of it where groups are in_lanes().
template <typename T, int kVectors>
__global__ void __launch_bounds__(most_row_threads(kVectors), row_blocks(kVectors))
    quantize_kernel(Quantizer quantizer, const T* x, bool aligned_rows) {
  const bool aligned = kVectors > 0 || aligned_rows;
  extern __shared__ uint4 dynamic[];
  const int columns = quantizer.columns;
  const int first = static_cast<int>(blockIdx.y) * row_threads() * kVector;
  Row<T, kVectors> row(dynamic, columns);
  int* maxima = reinterpret_cast<int*>(row.end(dynamic));
  pdl_launch_dependents();
  clear_maxima(quantizer, maxima);
  pdl_wait();
  const int64_t token = blockIdx.x;
  row.each([&](Vector<T>& v, int at) {
    v = load_vector(x + token * columns, first + at, columns, aligned);
  });
  if (quantizer.in_shared()) __syncthreads();  // the maxima are clear
  quantize_row(quantizer, token, first, row, maxima);
}

}  // namespace

void finish_product(Tensor out, const Product& product, Stream stream) {
  const int64_t columns = out.dim(1);
  const bool aligned = rows_aligned(columns, {out.raw()}) && rows_aligned(columns, product);
  dispatch_product_type(product, [&](auto in) {
    using In = decltype(in);
    dispatch_aligned(aligned, [&](auto is_aligned) {
      launch(finish_product_kernel<In, is_aligned()>, flat_grid(out.dim(0), columns),
             dim3(kFlatThreads), 0, stream, out.data<float>(), ProductView<In>(product));
    });
  });
}

void quantize_activations(const LinearInput& input, Stream stream) {
  const ConstTensor x = input.values;
  if (x.empty()) return;
  const Quantizer quantizer(input, x.dim(1));
  const bool aligned = rows_aligned(x.dim(1), {x.raw()});
  dispatch_compute_type(x.dtype(), [&](auto t) {
    using T = decltype(t);
    const T* values = static_cast<const T*>(x.raw());
    const bool plain = aligned && quantizer.plain();
    if (plain && !quantizer.in_shared()) {
      return launch(quantize_kernel<T, 1>, flat_grid(x.dim(0), x.dim(1)), dim3(kFlatThreads), 0,
                    stream, quantizer, values, aligned);
    }
    dispatch_row<T>(x.dim(1), plain, false, most_row_threads(0),
                    [&](auto vectors, const RowLaunch& row) {
                      launch_rows(quantize_kernel<T, vectors()>, x.dim(0), row,
                                  quantizer.shared_bytes(), stream, quantizer, values, aligned);
                    });
  });
}

}  // namespace flexq_ft::gpu
