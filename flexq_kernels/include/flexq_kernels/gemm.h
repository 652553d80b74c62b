// W6Ax GEMM: y = dequant(q_a · q_wᵀ), int32 sums inside a group of 128, fp32 across groups.
//
// All functions work on the packed codes, validate the problem first and return at once for m == 0.
// They run on OpenMP's threads, and may be called from several threads at a time; each calling
// thread keeps a buffer of its largest call: four bytes for each group of x, or of float
// activations up to 1024 rows of them in fp32.
#pragma once

#include <cstdint>
#include <ostream>

#include "flexq_kernels/quantize.h"

namespace flexq_kernels {

// y [m, n] = x [m, k] · w [n, k]ᵀ.
struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int act_bits = 6;  // 6 or 8: int8 codes; 16: float activations

  void validate() const;  // throws std::invalid_argument with all the numbers
};

std::ostream& operator<<(std::ostream& out, const GemmProblem& problem);

// Packed weights: codes as pack_int6 writes them; scales fp16 bits [group_count(k), n], as
// scales_by_group makes them and as on disk.
struct PackedWeight {
  const uint8_t* codes = nullptr;
  const uint16_t* scales = nullptr;
};

// Quantised activations as quantize_activations(group = 128) writes them.
struct QuantizedActivations {
  const int8_t* codes = nullptr;  // [m, group_count(k) * 128]
  const float* scales = nullptr;  // [m, group_count(k)]
};

// y [m, n] fp32 = sum_g float(s_w[g, n]) * s_a[m, g] * float(sum_{k in g} q_a q_w) + bias[n].
// bias [n] fp32 or null. Groups are added in order and nothing is fused, so a row does not depend
// on m, on threads or on the instruction set. act_bits 6 and 8 differ in the codes only.
void gemm_w6ax(float* y, const QuantizedActivations& a, const PackedWeight& w, const float* bias,
               const GemmProblem& problem);

// The exact int32 group sums [m, n, group_count(k)]: the oracle's view of the same inner loop.
void group_sums_w6ax(int32_t* sums, const int8_t* a_codes, const uint8_t* w_codes,
                     const GemmProblem& problem);

// Weight-only (act_bits 16): float activations x [m, k] of `type`,
// y = sum_g float(s_w[g, n]) * sum_{k in g} x * q_w + bias[n], all in fp32. A row does not depend
// on m or on threads; its last bits may depend on the instruction set, because products are fused.
void gemm_w6a16(float* y, const void* x, FloatType type, const PackedWeight& w, const float* bias,
                const GemmProblem& problem);

}  // namespace flexq_kernels
