// Round-to-nearest quantisers, symmetric, calibration-free; exactly docs/numerics.md.
// Every step is one IEEE operation, so that NumPy, the CPU and a GPU agree bit for bit. Wrong sizes
// throw std::invalid_argument; wrong values of a weight are returned as a WeightFault.
#pragma once

#include <cstdint>

namespace flexq_kernels {

enum class FloatType : uint8_t { kFp32, kFp16, kBf16 };

// Where a weight could not be quantised: NaN, infinity, or a scale past fp16.
struct WeightFault {
  int64_t row = -1;
  int64_t column = -1;
  float value = 0.0f;
  explicit operator bool() const { return row >= 0; }
};

// FlexQ weights: groups of 128 along K (the last may be shorter).
//   codes  [n, k]               -32 … 31
//   scales [n, group_count(k)]  fp16 bits: fp16(max(max|w| / 31, 1e-5)); products read them in
//                               another order (scales_by_group, tile_scales; pack.h)
//   w      [n, k]               fp32
// Returns the first fault, row by row; then codes and scales are unspecified.
[[nodiscard]] WeightFault quantize_weight_int6(int8_t* codes, uint16_t* scales, const float* w,
                                               int64_t n, int64_t k);

// One fp32 scale per output channel: codes [n, k] in -127 … 127, scales [n] = max|w| / 127, or 1
// where that is zero (a row of zeros). Faults are NaN and infinity.
[[nodiscard]] WeightFault quantize_weight_int8(int8_t* codes, float* scales, const float* w,
                                               int64_t n, int64_t k);

// Activations, dynamic, per token and group of `group` k (group = k: one scale per token).
//   codes  [m, ceil(k / group) * group]  the last group padded with zero codes
//   scales [m, ceil(k / group)]          fp32; 0 for a group below 2^-100, NaN if not finite
//   x      [m, k]                        of `type`
// act_bits is 6 (-32 … 31) or 8 (-128 … 127). A group with NaN or infinity has zero codes; its NaN
// scale makes the output row NaN. m == 0 is a no-op.
// static_scale, if not 0, at least 2^-100: the scale of every group that is finite; what is too
// large for it has the last code.
void quantize_activations(int8_t* codes, float* scales, const void* x, FloatType type, int64_t m,
                          int64_t k, int64_t group, int act_bits, float static_scale = 0.0f);

}  // namespace flexq_kernels
