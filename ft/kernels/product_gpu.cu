#include "ft/kernels/quantize.cuh"
#include "ft/kernels/row_blocks_gpu.cuh"
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
  finish_vector(v, y, raw, token_scale(y, token), column, kAligned);
  if (y.bias == nullptr) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] = __fadd_rn(v[e], 0.0f);
  }
  store_vector(out + token * columns, column, columns, kAligned, rounded_vector<float>(v));
}

// A block takes whole rows, or of few tokens, where groups are in_lanes(), a part of one.
template <typename T, typename Block>
__global__ void __launch_bounds__(Block::kMostThreads, Block::kBlocks)
    quantize_kernel(Quantizer quantizer, const T* x, int tokens, bool aligned_rows) {
  constexpr int kVectors = Block::kVectors;
  const bool aligned = kVectors > 0 || aligned_rows;
  extern __shared__ uint4 dynamic[];
  const int columns = quantizer.columns;
  const int first = static_cast<int>(blockIdx.y) * row_threads() * kVector;
  Row<T, kVectors> row(dynamic, columns);
  int* maxima = reinterpret_cast<int*>(row.end(dynamic));
  pdl_launch_dependents();
  if (kVectors == 0) clear_maxima(quantizer, maxima);
  pdl_wait();

  const auto load = [&](int64_t token, int i) {
    return load_vector(x + token * columns, first + row.column(i), columns, aligned);
  };
  const auto take = [&](int, int i, const Vector<T>& raw) { row[i] = raw; };
  const auto end = [&](int64_t token) {
    if (kVectors == 0 && quantizer.odd_groups()) __syncthreads();  // the maxima are clear
    quantize_row(quantizer, token, first, row, maxima);
    if (Block::kMany && quantizer.in_shared()) __syncthreads();  // they were read
  };
  each_row<Block>(row, tokens, load, take, end);
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
    const int64_t tokens = x.dim(0), columns = x.dim(1);
    const bool plain = aligned && quantizer.plain();
    const bool many = tokens > kManyTokens && quantizer.many_rows();
    if (plain && !quantizer.in_shared() && !many) {
      return launch(quantize_kernel<T, RowBlock<1>>, flat_grid(tokens, columns), dim3(kFlatThreads),
                    0, stream, quantizer, values, static_cast<int>(tokens), aligned);
    }
    dispatch_row<T, 4>(columns, plain, many, [&](auto block, const RowLaunch& row) {
      launch_rows(block, quantize_kernel<T, decltype(block)>, tokens, row, quantizer.shared_bytes(),
                  stream, quantizer, values, static_cast<int>(tokens), aligned);
    });
  });
}

}  // namespace flexq_ft::gpu
