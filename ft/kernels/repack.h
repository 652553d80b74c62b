// Blocks of a weight file into a row-major weight [n, k] (Layout::kRowMajor), the dtype converted.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// The block is [rows, k], and becomes rows [row, row + rows) of dst (row_major_nk, column 0); or it
// is [columns, rows], as FasterTransformer stores floats, and becomes columns [column, column +
// columns) of the same rows. dst [n, k] and src are of any float type, or both int8. Values of
// another type are rounded to nearest even; a NaN stays a NaN.
void invokeRepackRows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                      Stream stream);

}  // namespace flexq_ft
