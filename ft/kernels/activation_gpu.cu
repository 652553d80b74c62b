#include "ft/kernels/activation.cuh"
#include "ft/kernels/quantize.cuh"
#include "ft/kernels/row_blocks_gpu.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

static_assert(kVector == kBandRows);

// Where the columns of a product lie, of vectors of the result: a band is a vector.
struct Columns {
  bool gated;
  int inter;
  int step;  // from gate to gate; 2 in pairs
  int up_behind;

  Columns(int inter, bool gated, RowOrder order)
      : gated(gated),
        inter(inter),
        step(order.paired != 0 ? 2 : 1),
        up_behind(order.paired != 0 ? kBandRows : inter) {}

  __device__ __forceinline__ int gate(int column) const { return column * step; }
  __device__ __forceinline__ int up(int column) const { return gate(column) + up_behind; }
};

// What eight columns of the result are made of.
template <typename In>
struct Gated {
  Vector<In> gate;
  Vector<In> up;
};

template <typename In>
__device__ __forceinline__ Gated<In> load_gated(const ProductView<In>& x, int64_t token,
                                                const Columns& columns, int column, bool aligned) {
  Gated<In> raw = {};
  const In* values = x.values + token * x.columns;
  const int left = columns.inter - column;
  const int at = columns.gate(column);
  raw.gate = load_vector(values, at, at + left, aligned);
  if (!columns.gated) return raw;
  const int up_at = columns.up(column);
  raw.up = load_vector(values, up_at, up_at + left, aligned);
  return raw;
}

// act(gate) * up, or act(gate); zeros past the end of the row.
template <typename T, typename In>
__device__ __forceinline__ Vector<T> activated(const Gated<In>& raw, const ProductView<In>& x,
                                               float act_scale, Activation activation,
                                               const Columns& columns, int column, bool aligned) {
  if (column >= columns.inter) return {};
  float v[kVector];
  finish_vector(v, x, raw.gate, act_scale, columns.gate(column), aligned);
  activate(v, activation);
  if (columns.gated) {
    float u[kVector];
    finish_vector(u, x, raw.up, act_scale, columns.up(column), aligned);
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] = __fmul_rn(v[e], u[e]);
  }
  if (!aligned) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (column + e >= columns.inter) v[e] = 0.0f;  // a bias may go on there
    }
  }
  return rounded_vector<T>(v);
}

// A block takes whole rows, or of few tokens, where the row has more than one scale, a part of one.
template <typename T, typename In, typename Block>
__global__ void __launch_bounds__(Block::kMostThreads, Block::kBlocks)
    activation_kernel(T* out, Quantizer quantizer, ProductView<In> x, Activation activation,
                      Columns columns, int tokens, bool aligned_rows) {
  constexpr int kVectors = Block::kVectors;
  const bool aligned = kVectors > 0 || aligned_rows;
  const int inter = columns.inter;
  extern __shared__ uint4 dynamic[];
  const int first = static_cast<int>(blockIdx.y) * row_threads() * kVector;
  Row<T, kVectors> row(dynamic, inter);
  int* maxima = reinterpret_cast<int*>(row.end(dynamic));
  pdl_launch_dependents();
  row.each([&](Vector<T>&, int at) {
    if (first + at >= inter) return;
    prefetch_scales(x, columns.gate(first + at));
    if (columns.gated) prefetch_scales(x, columns.up(first + at));
  });
  if (kVectors == 0) clear_maxima(quantizer, maxima);
  pdl_wait();

  RowScale act_scale;
  const auto load = [&](int64_t token, int i) {
    act_scale.load(x, token, i);
    return load_gated(x, token, columns, first + row.column(i), aligned);
  };
  const auto take = [&](int64_t token, int i, const Gated<In>& raw) {
    const int column = first + row.column(i);
    row[i] = activated<T>(raw, x, act_scale.take(i), activation, columns, column, aligned);
    if (out != nullptr) store_vector(out + token * inter, column, inter, aligned, row[i]);
  };
  const auto end = [&](int64_t token) {
    if (kVectors == 0 && quantizer.odd_groups()) __syncthreads();  // the maxima are clear
    quantize_row(quantizer, token, first, row, maxima);
    if (Block::kMany && quantizer.in_shared()) __syncthreads();  // they were read
  };
  each_row<Block>(row, tokens, load, take, end);
}

template <typename T, typename In>
void launch_activation(const LinearInput& out, const Product& x, Activation activation, bool gated,
                       RowOrder order, Stream stream) {
  const int64_t tokens = x.values.dim(0);
  const int64_t inter = x.values.dim(1) / (gated ? 2 : 1);
  const Columns columns(static_cast<int>(inter), gated, order);
  const bool aligned = rows_aligned(inter, {out.values.raw()}) && rows_aligned(inter, x);
  const Quantizer quantizer(out, inter);
  T* values = static_cast<T*>(out.values.raw());
  const bool plain = aligned && quantizer.plain();
  // Without codes a row has no end to wait for.
  const bool many = tokens > kManyTokens && out.quantized() && quantizer.many_rows();
  if (plain && !quantizer.in_shared() && !many) {
    return launch(activation_kernel<T, In, RowBlock<1>>, flat_grid(tokens, inter),
                  dim3(kFlatThreads), 0, stream, values, quantizer, ProductView<In>(x), activation,
                  columns, static_cast<int>(tokens), aligned);
  }
  dispatch_row<T, 4>(inter, plain, many, [&](auto block, const RowLaunch& row) {
    launch_rows(block, activation_kernel<T, In, decltype(block)>, tokens, row,
                quantizer.shared_bytes(), stream, values, quantizer, ProductView<In>(x), activation,
                columns, static_cast<int>(tokens), aligned);
  });
}

}  // namespace

void activation(const LinearInput& out, const Product& x, Activation activation, bool gated,
                RowOrder order, Stream stream) {
  dispatch_compute_type(out.dtype, [&](auto t) {
    dispatch_product_type(x, [&](auto in) {
      launch_activation<decltype(t), decltype(in)>(out, x, activation, gated, order, stream);
    });
  });
}

}  // namespace flexq_ft::gpu
