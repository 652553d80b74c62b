#include "ft/kernels/activation.cuh"
#include "ft/kernels/quantize.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

static_assert(kVector == kBandRows);

// Where the columns of a product lie, of vectors of the result.
struct Columns {
  bool gated;
  int inter;
  RowOrder order;

  __device__ __forceinline__ int gate(int column) const {
    return static_cast<int>(order.place(column));
  }
  __device__ __forceinline__ int up(int column) const {
    return static_cast<int>(order.place(inter + column));
  }
};

// The raw values of eight columns of the result.
template <typename In>
struct Gated {
  Vector<In> gate;
  Vector<In> up;

  __device__ __forceinline__ void load(const ProductView<In>& x, int64_t token,
                                       const Columns& columns, int column, bool aligned) {
    const In* values = x.values + token * x.columns;
    const int left = columns.inter - column;
    const int at = columns.gate(column);
    gate = load_vector(values, at, at + left, aligned);
    if (!columns.gated) return;
    const int up_at = columns.up(column);
    up = load_vector(values, up_at, up_at + left, aligned);
  }
};

// act(gate) * up, or act(gate); zeros past the end of the row.
template <typename T, typename In>
__device__ __forceinline__ Vector<T> activated(const Gated<In>& raw, const ProductView<In>& x,
                                               float act_scale, Activation activation,
                                               const Columns& columns, int column, bool aligned) {
  float v[kVector];
  finish_vector(v, x, raw.gate, act_scale, columns.gate(column), aligned);
  activate(v, activation);
  if (columns.gated) {
    float u[kVector];
    finish_vector(u, x, raw.up, act_scale, columns.up(column), aligned);
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] = __fmul_rn(v[e], u[e]);
  }
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    if (column + e >= columns.inter) v[e] = 0.0f;  // a bias may go on there
  }
  return rounded_vector<T>(v);
}

// A block takes one token: its whole row where the row has one scale, else a part of it.
template <typename T, typename In, int kVectors>
__global__ void __launch_bounds__(most_row_threads(kVectors), row_blocks(kVectors))
    activation_kernel(T* out, Quantizer quantizer, ProductView<In> x, Activation activation,
                      Columns columns, bool aligned_rows) {
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
  clear_maxima(quantizer, maxima);
  pdl_wait();

  const int64_t token = blockIdx.x;
  const float act_scale = token_scale(x, token);
  constexpr int kBatch = kVectors > 0 ? kVectors : 1;  // loads in flight
  for (int i = 0; i < row.count(); i += kBatch) {
    Gated<In> raw[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      raw[b].load(x, token, columns, first + row_column(i + b), aligned);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int column = first + row_column(i + b);
      row[i + b] = activated<T>(raw[b], x, act_scale, activation, columns, column, aligned);
      if (out != nullptr) store_vector(out + token * inter, column, inter, aligned, row[i + b]);
    }
  }
  if (quantizer.in_shared()) __syncthreads();  // the maxima are clear
  quantize_row(quantizer, token, first, row, maxima);
}

template <typename T, typename In>
void launch_activation(const LinearInput& out, const Product& x, Activation activation, bool gated,
                       RowOrder order, Stream stream) {
  const int64_t tokens = x.values.dim(0);
  const int64_t inter = x.values.dim(1) / (gated ? 2 : 1);
  const Columns columns{gated, static_cast<int>(inter), order};
  const bool aligned = rows_aligned(inter, {out.values.raw()}) && rows_aligned(inter, x);
  const Quantizer quantizer(out, inter);
  T* values = static_cast<T*>(out.values.raw());
  const bool plain = aligned && quantizer.plain();
  if (plain && !quantizer.in_shared()) {
    return launch(activation_kernel<T, In, 1>, flat_grid(tokens, inter), dim3(kFlatThreads), 0,
                  stream, values, quantizer, ProductView<In>(x), activation, columns, aligned);
  }
  // Of many tokens, small blocks: while one waits at its barrier others load. No bit depends on it.
  const bool small = tokens > kManyTokens && inter > kVector * most_row_threads(1);
  const int threads = small ? kSmallRowThreads : most_row_threads(0);
  dispatch_row<T>(inter, plain && !small, false, threads, [&](auto vectors, const RowLaunch& row) {
    launch_rows(activation_kernel<T, In, vectors()>, tokens, row, quantizer.shared_bytes(), stream,
                values, quantizer, ProductView<In>(x), activation, columns, aligned);
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
