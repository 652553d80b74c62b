// The vectorised bodies of the float and int8 products, one set per ISA.
//
// x is packed first, in blocks of gemm_row_block() rows, the last one narrower:
//   float:  [block][k][row in block]      fp32
//   int8:   [block][k / 2][row][2]        int16, an odd k padded with zero
// so that a tile of rows x panels reads both operands in order. Each output has one accumulator
// that k runs through in order: the same bits whatever the tile.
#pragma once

#include <cstdint>

#include "flexq_kernels/cpu/isa.h"
#include "ft/core/dtype.h"

namespace flexq_ft {

struct GemmTask {
  float* y;
  const void* x;         // packed
  const void* w;         // panels
  const float* w_scale;  // [n], or nullptr
  const float* x_scale;  // [m], int8 only
  const float* bias;     // [n], or nullptr
  int64_t m;
  int64_t n;
  int64_t k;
  DataType storage;  // of w
};

FLEXQ_ISA_DECLARE(int64_t gemm_row_block())
// Rows [begin, end) of x [m, k]; begin is a multiple of the row block.
FLEXQ_ISA_DECLARE(void gemm_pack_float(float* packed, const void* x, DataType dtype, int64_t m,
                                       int64_t k, int64_t begin, int64_t end))
FLEXQ_ISA_DECLARE(void gemm_pack_int8(int16_t* packed, const int8_t* x, int64_t m, int64_t k,
                                      int64_t begin, int64_t end))
// All rows times panels [begin, end).
FLEXQ_ISA_DECLARE(void gemm_float_panels(const GemmTask& task, int64_t begin, int64_t end))
FLEXQ_ISA_DECLARE(void gemm_int8_panels(const GemmTask& task, int64_t begin, int64_t end))

// Rows [row, row + rows) of a float panel <- w [rows, k] or, transposed, [k, rows]; the part that
// lies in panels [begin, end).
struct RepackTask {
  void* panel;
  DataType panel_dtype;
  const void* w;
  DataType w_dtype;
  int64_t row;
  int64_t rows;
  int64_t k;
  bool row_major_nk;
};

FLEXQ_ISA_DECLARE(void repack_float_panels(const RepackTask& task, int64_t begin, int64_t end))

}  // namespace flexq_ft
