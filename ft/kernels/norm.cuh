// RMSNorm and LayerNorm of rows in registers (rows_gpu.cuh).
#pragma once

#include "ft/kernels/norm.h"
#include "ft/kernels/rows_gpu.cuh"

namespace flexq_ft::gpu {

// NormArgs as a kernel takes them. bias null: RMSNorm.
template <typename T>
struct NormView {
  const T* weight;
  const T* bias;
  float eps;

  explicit NormView(const NormArgs& norm)
      : weight(static_cast<const T*>(norm.weight.raw())),
        bias(norm.type == NormType::kLayer ? static_cast<const T*>(norm.bias.raw()) : nullptr),
        eps(norm.eps) {}
};

struct NormShared {
  float sums[2][32];
};

// The mean is taken off first, then the squares are summed: no cancellation.
template <int kVectors, typename T>
__device__ __forceinline__ float sum_of_squares(Row<T, kVectors>& row, float mean, int hidden) {
  float sum = 0.0f;
  row.each([&](const Vector<T>& x, int column) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const float v = column + e < hidden ? x.at(e) - mean : 0.0f;
      sum = fmaf(v, v, sum);
    }
  });
  return sum;
}

// row = round(norm(row)), by all threads of a block; zeros past the end stay zero.
template <int kVectors, typename T>
__device__ __forceinline__ void normalize_row(Row<T, kVectors>& row, const NormView<T>& norm,
                                              int hidden, bool aligned, NormShared& shared) {
  const bool layer = norm.bias != nullptr;
  float mean = 0.0f;
  if (layer) {
    float sum = 0.0f;
    row.each([&](const Vector<T>& x, int) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum += x.at(e);
    });
    mean = block_sum(sum, shared.sums[0]) / static_cast<float>(hidden);
  }
  const float squares = block_sum(sum_of_squares(row, mean, hidden), shared.sums[1]);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(hidden) + norm.eps);
  row.each([&](Vector<T>& x, int column) {
    const Vector<T> weight = load_vector<true>(norm.weight, column, hidden, aligned);
    Vector<T> bias = {};
    if (layer) bias = load_vector<true>(norm.bias, column, hidden, aligned);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const float v = (x.at(e) - mean) * scale;
      const float out = layer ? fmaf(v, weight.at(e), bias.at(e)) : v * weight.at(e);
      x.set(e, from_float<T>(column + e < hidden ? out : 0.0f));
    }
  });
}

}  // namespace flexq_ft::gpu
