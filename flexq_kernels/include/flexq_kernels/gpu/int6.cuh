// Six-bit codes of the layout frag16x128 as tensor core operands, and what becomes of their sums.
//
// A lane (4g + t) holds twelve words of a tile: three 16-byte loads, word 3s + i for step s. Of
// each step it makes the four A registers of mma.m16n8k32 (or of wgmma with A in registers: the
// same order in each warp). A byte is four times a code: the code is in the upper six bits, so the
// sign is where int8 has it. What is multiplied is 4 q_w * q_a; the scale takes the factor back
// exactly.
#pragma once

#include <cuda_fp16.h>  // for the scales of those who use this

#include <cstdint>

#include "flexq_kernels/pack.h"

namespace flexq_kernels::gpu {

constexpr int kTileWords = kTileBytes / 4;       // of all lanes: 384
constexpr int kStepsPerGroup = kGroupSize / 32;  // of m16n8k32

// The A registers of one step from its three words.
__device__ __forceinline__ void unpack_int6(uint32_t (&a)[4], uint32_t w0, uint32_t w1,
                                            uint32_t w2) {
  a[0] = w0 & 0xfcfcfcfcu;
  a[1] = w1 & 0xfcfcfcfcu;
  a[2] = w2 & 0xfcfcfcfcu;
  a[3] = ((w0 << 6) & 0xc0c0c0c0u) | ((w1 << 4) & 0x30303030u) | ((w2 << 2) & 0x0c0c0c0cu);
}

// An accumulator that starts at kSumBias is, read as a float, 1.5 * 2^23 + v for a sum v of
// products 4 q_w q_a: floats in [2^23, 2^24) are one apart, and |v| <= 128 * 128 * 128 = 2^21 for
// every code.
constexpr int32_t kSumBias = 0x4b400000;
constexpr float kSumBiasValue = 12582912.0f;

// scale * (v / 4), exactly rounded once, from such an accumulator: kSumBiasValue / 4 is 3 * 2^20,
// so its product with an fp16 scale is exact, and the fma rounds the sum alone.
struct WeightScale {
  float quarter;  // scale / 4
  float bias;     // -kSumBiasValue * scale / 4

  __device__ __forceinline__ explicit WeightScale(float scale)
      : quarter(0.25f * scale), bias(-kSumBiasValue * (0.25f * scale)) {}

  __device__ __forceinline__ float apply(int32_t sum) const {
    return __fmaf_rn(__int_as_float(sum), quarter, bias);
  }
};

// The group sum itself, sum q_w q_a, for the entries that dump it.
__device__ __forceinline__ int32_t group_sum(int32_t biased) { return (biased - kSumBias) / 4; }

}  // namespace flexq_kernels::gpu
