// A group's part of a chunk of tokens, for both kernels of the wgmma family: weights from shared
// memory to A registers, the product, and its sums scaled and added up. A warp has the 16 rows of a
// row tile; its lane 4g + t rows g and g + 8, and tokens 2t, 2t + 1 of every eight.
#pragma once

#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/wgmma.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

// ---- Weights ----

using TileWords = uint32_t[kTileWords / 32];

__device__ __forceinline__ void load_words(TileWords& words, const unsigned char* tile, int lane) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint4 four = *reinterpret_cast<const uint4*>(tile + 512 * i + 16 * lane);
    words[4 * i] = four.x;
    words[4 * i + 1] = four.y;
    words[4 * i + 2] = four.z;
    words[4 * i + 3] = four.w;
  }
}

__device__ __forceinline__ void unpack_words(uint32_t (&a)[kStepsPerGroup][4],
                                             const TileWords& words) {
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    unpack_int6(a[s], words[3 * s], words[3 * s + 1], words[3 * s + 2]);
  }
}

// A quarter of the scales of rows `row` and `row` + 8.
__device__ __forceinline__ void load_quarters(float (&quarter)[2], const unsigned char* scales,
                                              int row) {
  const auto* const halves = reinterpret_cast<const __half*>(scales);
  quarter[0] = 0.25f * __half2float(halves[row]);
  quarter[1] = 0.25f * __half2float(halves[row + 8]);
}

// The scales themselves.
__device__ __forceinline__ void load_row_scales(float (&rows)[2], const unsigned char* scales,
                                                int row) {
  const auto* const halves = reinterpret_cast<const __half*>(scales);
  rows[0] = __half2float(halves[row]);
  rows[1] = __half2float(halves[row + 8]);
}

// ---- Tokens ----

// The scales of the lane's tokens, of a chunk whose scales begin at `scales`.
template <int kPairs>
__device__ __forceinline__ void load_scales(float2 (&to)[kPairs], const unsigned char* scales,
                                            int lane) {
  const auto* const from = reinterpret_cast<const float2*>(scales + lane % 4 * 8);
#pragma unroll
  for (int j = 0; j < kPairs; ++j) to[j] = from[4 * j];
}

// ---- Product and sums ----

// sums of the set = a * the codes of 64 or 32 tokens at a descriptor's address; of 128, both sets.
// `never` is false; where the compiler does not know it, the sums live on to it, so that it reads
// the old ones before they are overwritten instead of keeping a third set.
template <int kSet, int kTokens>
__device__ __forceinline__ void multiply_chunk(const uint32_t (&a)[kStepsPerGroup][4],
                                               uint32_t tokens, bool never) {
  static_assert(kTokens == 32 || kTokens == 64 || (kTokens == 128 && kSet == 0));
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    const uint64_t b = swizzled_descriptor(tokens + s * kDescriptorStep);
    if constexpr (kTokens == 32) wgmma_int8_32<kSet>(a[s], b, s > 0 || never);
    if constexpr (kTokens == 64) wgmma_int8_64<kSet>(a[s], b, s > 0 || never);
    if constexpr (kTokens == 128) wgmma_int8_128(a[s], b, s > 0 || never);
  }
  wgmma_commit();
}

// y += scale of the row * sum / 4 * scale of the token. The sums began at 0, are exact in a float,
// and the product with a quarter of the scale is rounded once, as WeightScale does it.
template <int kSums>
__device__ __forceinline__ void promote_chunk(float (&y)[kSums], const float (&sums)[kSums],
                                              const float (&quarter)[2],
                                              const float2 (&scales)[kSums / 4]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const float product = __fmul_rn(sums[i], quarter[i % 4 / 2]);
    const float2 scale = scales[i / 4];
    y[i] = __fmaf_rn(product, i % 2 == 0 ? scale.x : scale.y, y[i]);
  }
}

// The same to the bit, where scales are finite, of sums with kSumBias added, which saves converting
// them; rows whose scale is infinite are NaN.
template <int kSums>
__device__ __forceinline__ void promote_biased(float (&y)[kSums], const int32_t (&sums)[kSums],
                                               const float (&rows)[2],
                                               const float2 (&scales)[kSums / 4]) {
  const WeightScale row_scales[2] = {WeightScale(rows[0]), WeightScale(rows[1])};
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const float product = row_scales[i % 4 / 2].apply(sums[i]);
    const float2 scale = scales[i / 4];
    y[i] = __fmaf_rn(product, i % 2 == 0 ? scale.x : scale.y, y[i]);
  }
}

template <int kSums>
__device__ __forceinline__ void dump_chunk(const WgmmaParams& p, const float (&sums)[kSums],
                                           int row, int token, int group) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int n = row + i % 4 / 2 * 8, m = token + i / 4 * 8 + i % 2;
    if (n >= p.y.n || m >= p.y.m) continue;
    p.sums[(static_cast<int64_t>(m) * p.y.n + n) * p.groups + group] =
        static_cast<int32_t>(sums[i]) / 4;
  }
}

}  // namespace flexq_kernels::gpu
