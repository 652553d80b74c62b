#include "ft/kernels/norm.cuh"
#include "ft/kernels/quantize.cuh"
#include "ft/kernels/row_blocks_gpu.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

// residual + product of one row, rounded.
template <typename T, typename In>
__device__ __forceinline__ Vector<T> added(const Vector<T>& residual, const Vector<In>& product,
                                           const ProductView<In>& y, float act_scale, int column,
                                           bool aligned) {
  float sum[kVector];
  finish_vector(sum, y, product, act_scale, column, aligned);
#pragma unroll
  for (int e = 0; e < kVector; ++e) sum[e] = __fadd_rn(residual.at(e), sum[e]);
  return rounded_vector<T>(sum);
}

// What a vector of a row is made of.
template <typename T, typename In>
struct Addends {
  Vector<T> residual;
  Vector<In> product;
};

// A block takes whole rows. y.values null: the residual stays. out null: only codes are wanted.
template <typename T, typename In, typename Block>
__global__ void __launch_bounds__(Block::kMostThreads, Block::kBlocks)
    residual_norm_kernel(T* out, Quantizer quantizer, T* residual, ProductView<In> y,
                         NormView<T> norm, int tokens, int hidden, bool aligned_rows) {
  constexpr int kVectors = Block::kVectors;
  const bool aligned = kVectors > 0 || aligned_rows;
  __shared__ NormShared<kVectors> shared;
  extern __shared__ uint4 dynamic[];
  Row<T, kVectors> row(dynamic, hidden);
  int* maxima = reinterpret_cast<int*>(row.end(dynamic));
  pdl_launch_dependents();
  row.each([&](Vector<T>&, int column) {
    prefetch_vector(norm.weight, column, hidden);
    prefetch_vector(norm.bias, column, hidden);
    prefetch_scales(y, column);
  });
  if (kVectors == 0) clear_maxima(quantizer, maxima);
  pdl_wait();

  RowScale act_scale;
  const auto load = [&](int64_t token, int i) {
    Addends<T, In> raw = {};
    raw.residual = load_vector(residual + token * hidden, row.column(i), hidden, aligned);
    if (y.values == nullptr) return raw;
    raw.product = load_vector(y.values + token * hidden, row.column(i), hidden, aligned);
    act_scale.load(y, token, i);
    return raw;
  };
  const auto take = [&](int64_t token, int i, const Addends<T, In>& raw) {
    row[i] = raw.residual;
    if (y.values == nullptr) return;
    const int column = row.column(i);
    row[i] = added(raw.residual, raw.product, y, act_scale.take(i), column, aligned);
    store_vector(residual + token * hidden, column, hidden, aligned, row[i]);
  };
  const auto end = [&](int64_t token) {
    normalize_row<Block::kMany>(row, norm, hidden, aligned, shared);
    if (out != nullptr) {
      row.each([&](const Vector<T>& v, int column) {
        store_vector(out + token * hidden, column, hidden, aligned, v);
      });
    }
    quantize_row(quantizer, token, 0, row, maxima);
    if (Block::kMany) __syncthreads();  // the sums were read
  };
  each_row<Block>(row, tokens, load, take, end);
}

template <typename T, typename In, bool kAligned>
__global__ void __launch_bounds__(kFlatThreads)
    add_residual_kernel(T* residual, ProductView<In> y, int hidden) {
  const int column = static_cast<int>(blockIdx.y) * kFlatThreads * kVector + row_column(0);
  pdl_launch_dependents();
  prefetch_scales(y, column);
  pdl_wait();
  const int64_t token = blockIdx.x;
  T* x = residual + token * hidden;
  const Vector<T> row = load_vector(x, column, hidden, kAligned);
  const Vector<In> product = load_vector(y.values + token * hidden, column, hidden, kAligned);
  const Vector<T> sum = added(row, product, y, token_scale(y, token), column, kAligned);
  store_vector(x, column, hidden, kAligned, sum);
}

}  // namespace

void residual_norm(const LinearInput& out, Tensor residual, const Product& product,
                   const NormArgs& norm, Stream stream) {
  const int64_t tokens = residual.dim(0);
  const int64_t hidden = residual.dim(1);
  const bool aligned = rows_aligned(hidden, {out.values.raw(), residual.raw(), norm.weight.raw(),
                                             norm.bias.raw()}) &&
                       rows_aligned(hidden, product);
  const Quantizer quantizer(out, hidden);
  const bool plain = aligned && quantizer.plain();
  const bool many = tokens > kManyTokens && quantizer.many_rows();
  dispatch_compute_type(residual.dtype(), [&](auto t) {
    using T = decltype(t);
    dispatch_product_type(product, [&](auto in) {
      using In = decltype(in);
      dispatch_row<T, 2>(hidden, plain, many, [&](auto block, const RowLaunch& row) {
        launch_rows(block, residual_norm_kernel<T, In, decltype(block)>, tokens, row,
                    quantizer.shared_bytes(), stream, static_cast<T*>(out.values.raw()), quantizer,
                    static_cast<T*>(residual.raw()), ProductView<In>(product), NormView<T>(norm),
                    static_cast<int>(tokens), static_cast<int>(hidden), aligned);
      });
    });
  });
}

void add_residual(Tensor residual, const Product& product, Stream stream) {
  const int64_t hidden = residual.dim(1);
  const bool aligned = rows_aligned(hidden, {residual.raw()}) && rows_aligned(hidden, product);
  const dim3 grid = flat_grid(residual.dim(0), hidden);
  dispatch_compute_type(residual.dtype(), [&](auto t) {
    using T = decltype(t);
    dispatch_product_type(product, [&](auto in) {
      using In = decltype(in);
      dispatch_aligned(aligned, [&](auto is_aligned) {
        launch(add_residual_kernel<T, In, is_aligned()>, grid, dim3(kFlatThreads), 0, stream,
               static_cast<T*>(residual.raw()), ProductView<In>(product), static_cast<int>(hidden));
      });
    });
  });
}

}  // namespace flexq_ft::gpu
