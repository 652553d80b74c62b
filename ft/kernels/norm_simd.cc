// RMSNorm and LayerNorm of rows, compiled once per ISA.
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

template <typename T>
void rms_norm_row(T* out, const T* x, const T* weight, int64_t hidden, float eps) {
  F32x16 sum = zero_f32();
  for (int64_t i = 0; i < hidden; i += kLanes) {
    const F32x16 v = load_n(x + i, hidden - i);
    sum = fma(v, v, sum);
  }
  const float mean = reduce_add(sum) / static_cast<float>(hidden);
  const F32x16 scale = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < hidden; i += kLanes) {
    const F32x16 v = mul(load_n(x + i, hidden - i), scale);
    store_n(out + i, mul(v, load_n(weight + i, hidden - i)), hidden - i);
  }
}

// Mean first, then the squares of the differences: no cancellation.
template <typename T>
void layer_norm_row(T* out, const T* x, const T* weight, const T* bias, int64_t hidden, float eps) {
  F32x16 sum = zero_f32();
  for (int64_t i = 0; i < hidden; i += kLanes) sum = add(sum, load_n(x + i, hidden - i));
  const F32x16 mean = broadcast(reduce_add(sum) / static_cast<float>(hidden));
  F32x16 squares = zero_f32();
  for (int64_t i = 0; i < hidden; i += kLanes) {
    float lanes[kLanes];
    store(lanes, sub(load_n(x + i, hidden - i), mean));
    const F32x16 v = load_n(lanes, hidden - i);  // drops the lanes past the end
    squares = fma(v, v, squares);
  }
  const float variance = reduce_add(squares) / static_cast<float>(hidden);
  const F32x16 scale = broadcast(1.0f / __builtin_sqrtf(variance + eps));
  for (int64_t i = 0; i < hidden; i += kLanes) {
    const int64_t n = hidden - i;
    const F32x16 v = mul(sub(load_n(x + i, n), mean), scale);
    store_n(out + i, fma(v, load_n(weight + i, n), load_n(bias + i, n)), n);
  }
}

template <typename T>
void norm_rows_of(const NormRows& a) {
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t r = 0; r < a.rows; ++r) {
    T* out = static_cast<T*>(a.out) + r * a.hidden;
    const T* x = static_cast<const T*>(a.x) + r * a.hidden;
    if (a.layer) {
      layer_norm_row(out, x, weight, static_cast<const T*>(a.bias), a.hidden, a.eps);
    } else {
      rms_norm_row(out, x, weight, a.hidden, a.eps);
    }
  }
}

}  // namespace

void norm_rows(const NormRows& a) { FLEXQ_FT_PICK_FLOAT(a.dtype, norm_rows_of, a) }

}  // namespace flexq_ft::FLEXQ_ISA
