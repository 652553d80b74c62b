#include <cstring>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

template <typename T>
void add_rows(T* out, const T* a, const T* b, int64_t hidden) {
  for (int64_t i = 0; i < hidden; ++i) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

}  // namespace

void embedding(Tensor out, ConstTensor ids, ConstTensor table, ConstTensor positions,
               ConstTensor positional) {
  const int64_t hidden = out.dim(1);
  const int32_t* id = ids.data<int32_t>();
  flexq_kernels::parallel_ranges(out.dim(0), out.count(), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      void* to = out.rows(t, t + 1).raw();
      const void* row = table.rows(id[t], id[t] + 1).raw();
      if (!positional.defined()) {
        std::memcpy(to, row, static_cast<size_t>(hidden) * size_of(out.dtype()));
        continue;
      }
      const int32_t p = positions.data<int32_t>()[t];
      const void* offset = positional.rows(p, p + 1).raw();
      dispatch_float(out.dtype(), [&](auto tag) {
        using T = decltype(tag);
        add_rows(static_cast<T*>(to), static_cast<const T*>(row), static_cast<const T*>(offset),
                 hidden);
      });
    }
  });
}

}  // namespace flexq_ft::cpu
