// The vectorised bodies of the row ops (norm, residual, activation, rope), one set per ISA. Each
// handles whole rows, so a row's result does not depend on how rows are given to threads.
#pragma once

#include <cstdint>

#include "flexq_kernels/cpu/isa.h"
#include "ft/core/dtype.h"
#include "ft/core/model_config.h"

namespace flexq_ft {

// bias == nullptr and layer == false: RMSNorm. Rows [0, rows) of [rows, hidden].
struct NormRows {
  void* out;
  const void* x;
  const void* weight;
  const void* bias;
  int64_t rows;
  int64_t hidden;
  float eps;
  bool layer;
  DataType dtype;
};

struct ResidualRows {
  void* x;
  const float* y;
  const float* bias;  // or nullptr
  int64_t rows;
  int64_t hidden;
  DataType dtype;
};

struct ActivationRows {
  void* out;
  const float* x;  // gated: [rows, 2 * inter], gate then up
  int64_t rows;
  int64_t inter;
  bool gated;
  Activation activation;
  DataType dtype;
};

FLEXQ_ISA_DECLARE(void norm_rows(const NormRows& a))
FLEXQ_ISA_DECLARE(void residual_rows(const ResidualRows& a))
FLEXQ_ISA_DECLARE(void activation_rows(const ActivationRows& a))

// One head of one token: rounded to dtype, rotated by cos_sin (nullptr: not), rounded again.
FLEXQ_ISA_DECLARE(void rope_head(void* out, const float* x, const float* cos_sin, int64_t head_dim,
                                 DataType dtype))

}  // namespace flexq_ft
