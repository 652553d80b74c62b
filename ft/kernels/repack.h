// Blocks of a weight file into the layout that a device reads: a row-major weight [n, k]
// (Layout::kRowMajor), the dtype converted, and the scales of one of six bits.
#pragma once

#include "ft/core/row_order.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// The block is [rows, k], and becomes rows [row, row + rows) of dst (row_major_nk, column 0); or it
// is [columns, rows], as FasterTransformer stores floats, and becomes columns [column, column +
// columns) of the same rows. Rows are numbered as they are given; where they lie in dst says
// `order`. dst [n, k] and src are of any float type, or both int8 or uint8. Values of another type
// are rounded to nearest even; a NaN stays a NaN.
void invokeRepackRows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                      RowOrder order, Stream stream);

// Tiles of a six-bit weight [n, k] that is packed with its rows as they are given, to where its
// rows lie.
//   dst  uint8 [packed_bytes(n, k)], n = 2 * order.paired, not 0
//   src  uint8 [tiles, kTileBytes], tiles [first, first + tiles) of the weight
// A row beyond n is none: the padding of the last tile.
void invokePlaceTiles(Tensor dst, ConstTensor src, int64_t first, int64_t k, RowOrder order,
                      Stream stream);

// Scales of a six-bit weight [n, k] as a GPU reads them, beside their tiles (flexq_kernels/pack.h):
//   dst  fp16 [tiled_scale_count(n, k)], zeros for rows past n
//   src  fp16 [group_count(k), n]
void invokeTileScales(Tensor dst, ConstTensor src, int64_t k, Stream stream);

}  // namespace flexq_ft
