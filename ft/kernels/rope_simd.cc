// The rotation of one head, compiled once per ISA.
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

// Pairs (j, j + d / 2), as FasterTransformer's neox style and Hugging Face's rotate_half. Products
// and sums are rounded one by one, as there.
template <typename T>
void rope_head_of(void* out_data, const float* x, const float* cos_sin, int64_t head_dim) {
  T* out = static_cast<T*>(out_data);
  if (cos_sin == nullptr) {
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      store_n(out + i, load_n(x + i, head_dim - i), head_dim - i);
    }
    return;
  }
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    const F32x16 cos = load_n(cos_sin + i, n);
    const F32x16 sin = load_n(cos_sin + half + i, n);
    const F32x16 a = rounded<T>(load_n(x + i, n));
    const F32x16 b = rounded<T>(load_n(x + half + i, n));
    store_n(out + i, sub(mul(a, cos), mul(b, sin)), n);
    store_n(out + half + i, add(mul(b, cos), mul(a, sin)), n);
  }
}

}  // namespace

void rope_head(void* out, const float* x, const float* cos_sin, int64_t head_dim, DataType dtype) {
  FLEXQ_FT_PICK_FLOAT(dtype, rope_head_of, out, x, cos_sin, head_dim)
}

}  // namespace flexq_ft::FLEXQ_ISA
