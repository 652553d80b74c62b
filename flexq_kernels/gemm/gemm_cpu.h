// What gemm.cc dispatches to; arguments are checked there, m >= 1.
#pragma once

#include "flexq_kernels/cpu/isa.h"
#include "flexq_kernels/gemm.h"

namespace flexq_kernels {

void gemm_w6ax_cpu(float* y, const QuantizedActivations& a, const PackedWeight& w,
                   const float* bias, const GemmProblem& problem);
void group_sums_w6ax_cpu(int32_t* sums, const int8_t* a_codes, const uint8_t* w_codes,
                         const GemmProblem& problem);
void gemm_w6a16_cpu(float* y, const void* x, FloatType type, const PackedWeight& w,
                    const float* bias, const GemmProblem& problem);

// The vectorised part: row tiles begin … end - 1 of the output.
struct W6AxTask {
  float* y;                     // [m, n]
  int32_t* sums;                // [m, n, groups]
  const int8_t* codes;          // [m, groups * 128]
  const float* act_scales;      // [m, groups]
  const int32_t* offsets;       // [m, groups], of w6ax_offsets
  const uint8_t* weight_codes;  // packed
  const uint16_t* weight_scales;
  const float* bias;
  int64_t m, n, groups;
};

// offsets [count] <- -32 * the sum of each group of 128 codes: what an inner loop over code + 32
// has added too much.
FLEXQ_ISA_DECLARE(void w6ax_offsets(int32_t* offsets, const int8_t* codes, int64_t count))
FLEXQ_ISA_DECLARE(void w6ax_row_tiles(const W6AxTask& task, int64_t begin, int64_t end))
FLEXQ_ISA_DECLARE(void w6ax_sums_row_tiles(const W6AxTask& task, int64_t begin, int64_t end))

struct W6A16Task {
  float* y;        // [m, n]
  const float* x;  // [m, groups * 128], padded with zeros
  const uint8_t* weight_codes;
  const uint16_t* weight_scales;
  const float* bias;
  int64_t m, n, groups;
};

FLEXQ_ISA_DECLARE(void w6a16_row_tiles(const W6A16Task& task, int64_t begin, int64_t end))

}  // namespace flexq_kernels
