// Rows that a block holds: as its vector i, thread t has the eight columns from row_column(i) =
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

  __device__ __forceinline__ Row(uint4* shared, int columns) {}
  static __device__ __forceinline__ constexpr int count() { return kVectors; }
  __device__ __forceinline__ Vector<T>& operator[](int i) { return vectors[i]; }
  __device__ __forceinline__ uint4* end(uint4* shared) const { return shared; }

  // f(vector, column) for each of them.
  template <typename F>
  __device__ __forceinline__ void each(F&& f) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) f(vectors[i], row_column(i));
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

// The values from `column` of a row on, zeros past its end. kConstant: what no kernel ever writes.
template <bool kConstant = false, typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* row, int column, int columns,
                                                 bool aligned) {
  Vector<T> out = {};
  if (aligned) {
    if (column >= columns) return out;
    const uint4* from = reinterpret_cast<const uint4*>(row + column);
#pragma unroll
    for (int w = 0; w < Vector<T>::kWords; ++w) {
      out.words[w] = kConstant ? __ldg(from + w) : from[w];
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
// ProductView::finish. Where there is no bias the ops add nothing, and x + -0 = x for every x.
template <typename In>
__device__ __forceinline__ void finish_vector(float (&out)[kVector], const ProductView<In>& product,
                                              const Vector<In>& values, float act_scale, int column,
                                              bool aligned, float no_bias = -0.0f) {
  const int columns = static_cast<int>(product.columns);
  Vector<float> scale;
  Vector<float> bias;
#pragma unroll
  for (int e = 0; e < kVector; ++e) scale.set(e, 1.0f), bias.set(e, no_bias);
  if (product.weight_scale != nullptr) {
    scale = load_vector<true>(product.weight_scale, column, columns, aligned);
  }
  if (product.bias != nullptr) bias = load_vector<true>(product.bias, column, columns, aligned);
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    const float scaled = __fmul_rn(values.at(e), __fmul_rn(scale.get(e), act_scale));
    out[e] = __fadd_rn(scaled, bias.get(e));
  }
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

// Host side.

// Most threads of a block of a Row<T, kVectors>, and blocks of them that a multiprocessor should
// hold: without the second, ptxas spills to make room for more.
constexpr int most_row_threads(int vectors) { return vectors == 1 ? 512 : 1024; }
constexpr int row_blocks(int vectors) { return vectors == 1 ? 2 : 1; }

// More tokens than blocks run at once.
constexpr int64_t kManyTokens = 256;
constexpr int kSmallRowThreads = 256;

// How one block holds a row: its threads, and its shared memory.
struct RowLaunch {
  int threads;
  size_t shared_bytes;
};

// Calls f(vectors, launch) for rows of T, vectors an integral_constant: kVectors of Row. `plain`
// rows are aligned, and nothing is asked of them that only Row<T, 0> can do; those get blocks of at
// most so many threads. Of many tokens, small blocks: more of them run at once.
template <typename T, typename F>
void dispatch_row(int64_t columns, bool plain, bool many_tokens, int most_threads, F&& f) {
  const int64_t count = (columns + kVector - 1) / kVector;
  const auto threads = [&](int64_t vectors) {
    return static_cast<int>((count + vectors * 32 - 1) / (vectors * 32) * 32);
  };
  if (plain && count <= most_row_threads(1) && !(many_tokens && count > kSmallRowThreads)) {
    return f(std::integral_constant<int, 1>{}, RowLaunch{threads(1), 0});
  }
  if (plain && count <= 2 * most_row_threads(2)) {
    return f(std::integral_constant<int, 2>{}, RowLaunch{threads(2), 0});
  }
  const int64_t vectors = (count + most_threads - 1) / most_threads;
  const size_t bytes = static_cast<size_t>(vectors * threads(vectors)) * kVector * sizeof(T);
  f(std::integral_constant<int, 0>{}, RowLaunch{threads(vectors), bytes});
}

// Calls f with std::true_type or std::false_type.
template <typename F>
void dispatch_aligned(bool aligned, F&& f) {
  if (aligned) return f(std::true_type{});
  f(std::false_type{});
}

// One block per token.
template <typename... Params, typename... Args>
void launch_rows(void (*kernel)(Params...), int64_t tokens, const RowLaunch& row,
                 size_t more_shared_bytes, Stream stream, Args&&... args) {
  const size_t bytes = row.shared_bytes + more_shared_bytes;
  if (bytes > 48 * 1024) allow_shared_memory(kernel, bytes);
  launch(kernel, dim3(static_cast<unsigned>(tokens)), dim3(static_cast<unsigned>(row.threads)),
         bytes, stream, std::forward<Args>(args)...);
}

// A grid of (token, part of a row) in blocks of kFlatThreads, one vector a thread.
inline dim3 flat_grid(int64_t tokens, int64_t columns) {
  const int64_t part = kFlatThreads * kVector;
  FLEXQ_FT_CHECK_LE(columns, 65535 * part, "columns of a row on a GPU");
  FLEXQ_FT_CHECK_LE(tokens, int64_t{0x7fffffff}, "tokens");
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
