// Rows that a block holds: as its vector i, thread t has the eight columns from column(i) =
// (i * threads + t) * 8 on, in registers or, of long rows, in shared memory. Global memory is read
// once, sixteen bytes at a time where rows are aligned, and value by value where they are not.
#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>

#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/launch.cuh"

namespace flexq_ft::gpu {

constexpr int kVector = 8;
constexpr int kFlatThreads = 128;  // of ops in which no value of a row depends on another

// Eight values, as whole 16-byte words so that they are loaded and stored as such.
template <typename T>
struct Vector {
  static constexpr int kWords = kVector * sizeof(T) / sizeof(uint4);
  uint4 words[kWords];

  __device__ __forceinline__ T get(int e) const { return reinterpret_cast<const T*>(words)[e]; }
  __device__ __forceinline__ void set(int e, T value) { reinterpret_cast<T*>(words)[e] = value; }
  __device__ __forceinline__ float at(int e) const { return to_float(get(e)); }
};

__device__ __forceinline__ int row_threads() { return static_cast<int>(blockDim.x); }

__device__ __forceinline__ int row_column(int i) {
  return (i * row_threads() + static_cast<int>(threadIdx.x)) * kVector;
}

// A thread's vectors of a row: kVectors in registers, of rows that are aligned; kVectors = 0: any
// number of them in shared memory, and any row. One flag at run time for both would cost the first
// its loads in one batch, and the cold kernels of a decode step twice the code to fetch.
template <typename T, int kVectors>
struct Row {
  Vector<T> vectors[kVectors];
  int thread = static_cast<int>(threadIdx.x);

  __device__ __forceinline__ Row(uint4* shared, int columns) {}
  static __device__ __forceinline__ constexpr int count() { return kVectors; }
  __device__ __forceinline__ int column(int i) const {
    return (i * row_threads() + thread) * kVector;
  }
  // Value e of vector i: aligned rows end between two vectors.
  __device__ __forceinline__ bool inside(int i, int e, int columns) const {
    return column(i) < columns;
  }
  // To the compiler the columns are other ones from here on: it would keep all that follows from
  // them in registers from row to row.
  __device__ __forceinline__ void renew_columns() { asm volatile("" : "+r"(thread)); }
  __device__ __forceinline__ Vector<T>& operator[](int i) { return vectors[i]; }
  __device__ __forceinline__ uint4* end(uint4* shared) const { return shared; }

  // f(vector, column) for each of them.
  template <typename F>
  __device__ __forceinline__ void each(F&& f) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) f(vectors[i], column(i));
  }
};

template <typename T>
struct Row<T, 0> {
  uint4* shared;
  int columns;

  __device__ __forceinline__ Row(uint4* shared, int columns) : shared(shared), columns(columns) {}
  __device__ __forceinline__ int count() const {
    return (columns + row_threads() * kVector - 1) / (row_threads() * kVector);
  }
  __device__ __forceinline__ int column(int i) const { return row_column(i); }
  __device__ __forceinline__ bool inside(int i, int e, int columns) const {
    return column(i) + e < columns;
  }
  __device__ __forceinline__ Vector<T>& operator[](int i) {
    return reinterpret_cast<Vector<T>*>(shared)[i * row_threads() + static_cast<int>(threadIdx.x)];
  }
  // The first word of the shared memory behind the row.
  __device__ __forceinline__ uint4* end(uint4* shared) const {
    return shared + count() * row_threads() * Vector<T>::kWords;
  }

  template <typename F>
  __device__ __forceinline__ void each(F&& f) {
#pragma unroll 1
    for (int i = 0; i < count(); ++i) f((*this)[i], row_column(i));
  }
};

// The values from `column` of a row on, zeros past its end. kConstant: what no kernel ever writes,
// and what the next row needs again; the rest, read once, does not push it out of the L1.
template <bool kConstant = false, typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* row, int column, int columns,
                                                 bool aligned) {
  Vector<T> out = {};
  if (aligned) {
    if (column >= columns) return out;
    const uint4* from = reinterpret_cast<const uint4*>(row + column);
#pragma unroll
    for (int w = 0; w < Vector<T>::kWords; ++w) {
      out.words[w] = kConstant ? __ldg(from + w) : __ldcs(from + w);
    }
    return out;
  }
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    if (column + e < columns) out.set(e, row[column + e]);
  }
  return out;
}

template <typename T>
__device__ __forceinline__ void store_vector(T* row, int column, int columns, bool aligned,
                                             const Vector<T>& values) {
  if (aligned) {
    if (column >= columns) return;
#pragma unroll
    for (int w = 0; w < Vector<T>::kWords; ++w) {
      reinterpret_cast<uint4*>(row + column)[w] = values.words[w];
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    if (column + e < columns) row[column + e] = values.get(e);
  }
}

// Has a constant vector on its way to the L2 before pdl_wait(). Null: nothing.
template <typename T>
__device__ __forceinline__ void prefetch_vector(const T* row, int column, int columns) {
  if (row != nullptr && column < columns) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + column));
  }
}

template <typename In>
__device__ __forceinline__ void prefetch_scales(const ProductView<In>& product, int column) {
  const int columns = static_cast<int>(product.columns);
  prefetch_vector(product.weight_scale, column, columns);
  prefetch_vector(product.bias, column, columns);
}

// The values of a product whose raw values were loaded from `column` on, rounded as
// ProductView::finish: x * 1 and x + -0 are x, so that of scales and a bias that are absent there
// is nothing to do. Only invokeFinishProduct adds +0.
template <typename In>
__device__ __forceinline__ void finish_vector(float (&out)[kVector], const ProductView<In>& product,
                                              const Vector<In>& values, float act_scale, int column,
                                              bool aligned) {
  const int columns = static_cast<int>(product.columns);
#pragma unroll
  for (int e = 0; e < kVector; ++e) out[e] = values.at(e);
  if (product.weight_scale != nullptr) {
    const auto scale = load_vector<true>(product.weight_scale, column, columns, aligned);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      out[e] = __fmul_rn(out[e], __fmul_rn(scale.get(e), act_scale));
    }
  } else if (product.act_scale != nullptr) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) out[e] = __fmul_rn(out[e], act_scale);
  }
  if (product.bias == nullptr) return;
  const auto bias = load_vector<true>(product.bias, column, columns, aligned);
#pragma unroll
  for (int e = 0; e < kVector; ++e) out[e] = __fadd_rn(out[e], bias.get(e));
}

template <typename In>
__device__ __forceinline__ float token_scale(const ProductView<In>& product, int64_t token) {
  return product.act_scale != nullptr ? product.act_scale[token] : 1.0f;
}

template <typename T>
__device__ __forceinline__ Vector<T> rounded_vector(const float (&values)[kVector]) {
  Vector<T> out;
#pragma unroll
  for (int e = 0; e < kVector; ++e) out.set(e, from_float<T>(values[e]));
  return out;
}

// The sum over a block of what its threads have of each of kVectors vectors, the same in every
// thread. 32 neighbouring vectors of a row are summed first, then those sums: the bits do not
// depend on how many vectors a thread holds. One barrier: a second sum needs a `partial` of its
// own.
template <int kVectors>
__device__ __forceinline__ float block_sum(const float (&values)[kVectors],
                                           float (&partial)[kVectors][32]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = row_threads() / 32;
  float* const sums = partial[0];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float value = values[i];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    }
    if (lane == 0) sums[i * warps + warp] = value;
  }
  __syncthreads();
  float value = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * 32 + lane;
    value += at < kVectors * warps ? sums[at] : 0.0f;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// The largest over a block of what its threads have, the same in every thread; partial: one for
// each warp. One barrier.
__device__ __forceinline__ int block_max(int value, int* partial) {
  value = __reduce_max_sync(0xffffffffu, value);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, lane < row_threads() / 32 ? partial[lane] : 0);
}

// Host side.

constexpr int64_t kMostTokens = 0x3fffffff;  // the next token of a block is an int too

// Calls f with std::true_type or std::false_type.
template <typename F>
void dispatch_aligned(bool aligned, F&& f) {
  if (aligned) return f(std::true_type{});
  f(std::false_type{});
}

// A grid of (token, part of a row) in blocks of kFlatThreads, one vector a thread.
inline dim3 flat_grid(int64_t tokens, int64_t columns) {
  const int64_t part = kFlatThreads * kVector;
  FLEXQ_FT_CHECK_LE(columns, 65535 * part, "columns of a row on a GPU");
  FLEXQ_FT_CHECK_LE(tokens, kMostTokens, "tokens");
  return dim3(static_cast<unsigned>(tokens), static_cast<unsigned>((columns + part - 1) / part));
}

// May rows of so many columns, at these addresses, be read 16 bytes at a time?
inline bool rows_aligned(int64_t columns, std::initializer_list<const void*> rows) {
  if (columns % kVector != 0) return false;
  for (const void* row : rows) {
    if (reinterpret_cast<uintptr_t>(row) % sizeof(uint4) != 0) return false;
  }
  return true;
}

inline bool rows_aligned(int64_t columns, const Product& y) {
  return rows_aligned(columns, {y.values.raw(), y.weight_scale.raw(), y.bias.raw()});
}

}  // namespace flexq_ft::gpu
