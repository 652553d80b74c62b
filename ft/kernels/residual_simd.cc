// The residual add of rows, compiled once per ISA.
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

template <typename T>
void residual_rows_of(const ResidualRows& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    T* x = static_cast<T*>(a.x) + r * a.hidden;
    const float* y = a.y + r * a.hidden;
    for (int64_t i = 0; i < a.hidden; i += kLanes) {
      const int64_t n = a.hidden - i;
      F32x16 v = load_n(y + i, n);
      if (a.bias != nullptr) v = add(v, load_n(a.bias + i, n));
      store_n(x + i, add(load_n(x + i, n), v), n);
    }
  }
}

}  // namespace

void residual_rows(const ResidualRows& a) { FLEXQ_FT_PICK_FLOAT(a.dtype, residual_rows_of, a) }

}  // namespace flexq_ft::FLEXQ_ISA
