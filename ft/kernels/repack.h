// Blocks of a weight file into the layout that a device reads: a row-major weight [n, k]
// (Layout::kRowMajor), the dtype converted, and the scales of one of six bits.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// The block is [rows, k], and becomes rows [row, row + rows) of dst (row_major_nk, column 0); or it
// is [columns, rows], as FasterTransformer stores floats, and becomes columns [column, column +
// columns) of the same rows. dst [n, k] and src are of any float type, or both int8 or uint8.
// Values of another type are rounded to nearest even; a NaN stays a NaN.
void invokeRepackRows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                      Stream stream);

// Scales of a six-bit weight [n, k] as a GPU reads them, beside their tiles (flexq_kernels/pack.h):
//   dst  fp16 [tiled_scale_count(n, k)], zeros for rows past n
//   src  fp16 [group_count(k), n]
void invokeTileScales(Tensor dst, ConstTensor src, int64_t k, Stream stream);

}  // namespace flexq_ft
