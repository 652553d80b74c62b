// Activations of rows, compiled once per ISA.
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

// x * sigmoid(z). exp saturates at e^88.37, so the quotient is never NaN for a finite x.
FLEXQ_SIMD F32x16 gate_with(F32x16 x, F32x16 z) {
  const F32x16 e = exp(sub(zero_f32(), z));
  return div(x, add(broadcast(1.0f), e));
}

// 0.5 (1 + tanh(u)) = sigmoid(2 u): no cancellation for negative x.
FLEXQ_SIMD F32x16 gelu(F32x16 x) {
  const F32x16 cubic = fma(mul(mul(x, x), x), broadcast(0.044715f), x);
  return gate_with(x, mul(cubic, broadcast(1.5957691216f)));  // 2 sqrt(2 / pi)
}

// NaN stays NaN: it must reach the check on the logits.
FLEXQ_SIMD F32x16 relu(F32x16 x) { return select_less(x, zero_f32(), zero_f32(), x); }

template <Activation kind>
FLEXQ_SIMD F32x16 activate(F32x16 x) {
  if constexpr (kind == Activation::kSilu) return gate_with(x, x);
  if constexpr (kind == Activation::kGelu) return gelu(x);
  return relu(x);
}

template <typename T, Activation kind>
void rows_of(const ActivationRows& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    T* out = static_cast<T*>(a.out) + r * a.inter;
    const float* x = a.x + r * a.inter * (a.gated ? 2 : 1);
    for (int64_t i = 0; i < a.inter; i += kLanes) {
      const int64_t n = a.inter - i;
      F32x16 v = activate<kind>(load_n(x + i, n));
      if (a.gated) v = mul(v, load_n(x + a.inter + i, n));
      store_n(out + i, v, n);
    }
  }
}

template <typename T>
void activation_rows_of(const ActivationRows& a) {
  switch (a.activation) {
    case Activation::kSilu:
      return rows_of<T, Activation::kSilu>(a);
    case Activation::kGelu:
      return rows_of<T, Activation::kGelu>(a);
    case Activation::kRelu:
      return rows_of<T, Activation::kRelu>(a);
  }
}

}  // namespace

void activation_rows(const ActivationRows& a) {
  FLEXQ_FT_PICK_FLOAT(a.dtype, activation_rows_of, a)
}

}  // namespace flexq_ft::FLEXQ_ISA
