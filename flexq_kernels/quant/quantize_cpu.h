// What quantize.cc dispatches to; arguments are checked there.
#pragma once

#include "flexq_kernels/cpu/isa.h"
#include "flexq_kernels/quantize.h"

namespace flexq_kernels {

struct ActivationQuantizer {
  int8_t* codes;
  float* scales;
  const void* x;
  FloatType type;
  int64_t k;
  int64_t group;
  int act_bits;
  float static_scale;
};

// Weight rows: false if a value cannot be quantised. Activations: rows of x.
FLEXQ_ISA_DECLARE(bool quantize_weight_int6_rows(int8_t* codes, uint16_t* scales, const float* w,
                                                 int64_t k, int64_t begin, int64_t end))
FLEXQ_ISA_DECLARE(bool quantize_weight_int8_rows(int8_t* codes, float* scales, const float* w,
                                                 int64_t k, int64_t begin, int64_t end))
FLEXQ_ISA_DECLARE(void quantize_activation_rows(const ActivationQuantizer& q, int64_t begin,
                                                int64_t end))

// dst [count] fp32 <- src [count] of `type`.
FLEXQ_ISA_DECLARE(void widen(float* dst, const void* src, FloatType type, int64_t count))

}  // namespace flexq_kernels
