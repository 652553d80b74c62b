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

template <int kVectors>
struct NormShared {
  static constexpr int kSums = kVectors > 0 ? kVectors : 1;
  float sums[2][kSums][32];
};

// Over a block, the sum of add(sum, value, inside the row?) over a row's values; a sum for each
// vector in registers, one for all of those in shared memory.
template <int kVectors, typename T, typename F>
__device__ __forceinline__ float row_sum(Row<T, kVectors>& row, int hidden, F&& add,
                                         float (&partial)[NormShared<kVectors>::kSums][32]) {
  constexpr int kSums = NormShared<kVectors>::kSums;
  float sums[kSums] = {};
#pragma unroll kSums
  for (int i = 0; i < row.count(); ++i) {
    float& sum = sums[kVectors > 0 ? i : 0];
    const Vector<T>& x = row[i];
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum = add(sum, x.at(e), row.inside(i, e, hidden));
  }
  return block_sum(sums, partial);
}

// row = round(norm(row)), by all threads of a block; zeros past the end stay zero. kMany: the
// weights are in the L1 from the row before, and take no registers while the next row is read.
template <bool kMany, int kVectors, typename T>
__device__ __forceinline__ void normalize_row(Row<T, kVectors>& row, const NormView<T>& norm,
                                              int hidden, bool aligned,
                                              NormShared<kVectors>& shared) {
  constexpr int kKept = kVectors > 0 ? kVectors : 1;
  const bool layer = norm.bias != nullptr;
  Vector<T> weight[kKept];
  Vector<T> bias[kKept] = {};
  const auto load = [&](int kept, int i) {
    weight[kept] = load_vector<true>(norm.weight, row.column(i), hidden, aligned);
    if (layer) bias[kept] = load_vector<true>(norm.bias, row.column(i), hidden, aligned);
  };
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!kMany) load(i, i);  // on their way while the sums are made
  }
  float mean = 0.0f;
  if (layer) {
    const auto add = [](float sum, float x, bool) { return sum + x; };
    mean = row_sum(row, hidden, add, shared.sums[0]) / static_cast<float>(hidden);
  }
  // The mean is taken off first, then the squares are summed: no cancellation.
  const auto add_square = [&](float sum, float x, bool inside) {
    const float v = inside ? x - mean : 0.0f;
    return fmaf(v, v, sum);
  };
  const float squares = row_sum(row, hidden, add_square, shared.sums[1]);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(hidden) + norm.eps);
#pragma unroll kKept
  for (int i = 0; i < row.count(); ++i) {
    const int kept = kVectors > 0 ? i : 0;
    if (kVectors == 0 || kMany) load(kept, i);
    Vector<T>& x = row[i];
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const float v = (x.at(e) - mean) * scale;
      const float w = weight[kept].at(e);
      const float out = layer ? fmaf(v, w, bias[kept].at(e)) : v * w;
      x.set(e, from_float<T>(row.inside(i, e, hidden) ? out : 0.0f));
    }
  }
}

}  // namespace flexq_ft::gpu
