#include "ft/kernels/rows_gpu.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

// The rows of a table, and which of them each token takes. rows null: nothing is added.
template <typename T>
struct Lookup {
  const T* rows;
  const int32_t* index;
  int64_t count;

  Lookup(ConstTensor table, ConstTensor index_of)
      : rows(static_cast<const T*>(table.raw())),
        index(static_cast<const int32_t*>(index_of.raw())),
        count(table.defined() ? table.dim(0) : 0) {}
};

// An index outside its table gives a row of zeros. Loads are not those of constants: the table may
// be the residual stream, which the kernel in front still wrote when this one began.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kFlatThreads)
    embedding_kernel(T* out, Lookup<T> words, Lookup<T> places, int hidden) {
  const int column = static_cast<int>(blockIdx.y) * kFlatThreads * kVector + row_column(0);
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.x;
  const int64_t word = words.index[token];
  const int64_t place = places.rows != nullptr ? places.index[token] : 0;
  const bool known = word >= 0 && word < words.count && place >= 0 &&
                     (places.rows == nullptr || place < places.count);
  Vector<T> row = {};
  if (known) {
    row = load_vector(words.rows + word * hidden, column, hidden, kAligned);
    if (places.rows != nullptr) {
      const Vector<T> offset = load_vector(places.rows + place * hidden, column, hidden, kAligned);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        row.set(e, from_float<T>(__fadd_rn(row.at(e), offset.at(e))));
      }
    }
  }
  store_vector(out + token * hidden, column, hidden, kAligned, row);
}

}  // namespace

void embedding(Tensor out, ConstTensor ids, ConstTensor table, ConstTensor positions,
               ConstTensor positional, Stream stream) {
  const int64_t hidden = out.dim(1);
  const bool aligned = rows_aligned(hidden, {out.raw(), table.raw(), positional.raw()});
  dispatch_compute_type(out.dtype(), [&](auto t) {
    using T = decltype(t);
    dispatch_aligned(aligned, [&](auto is_aligned) {
      launch(embedding_kernel<T, is_aligned()>, flat_grid(out.dim(0), hidden), dim3(kFlatThreads),
             0, stream, static_cast<T*>(out.raw()), Lookup<T>(table, ids),
             Lookup<T>(positional, positions), static_cast<int>(hidden));
    });
  });
}

}  // namespace flexq_ft::gpu
