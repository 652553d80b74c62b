// The products that are not FlexQ's: float, W8A16 and W8A8, y = x · wᵀ + bias.
//
// Weights are in the CPU's runtime layouts (core/data_format.h, Layout), made once by the repack
// functions below, N padded to 16 with zeros. y is fp32 [m, n]; bias fp32 [n] or undefined. k is
// added in one order per output, so a row does not depend on m or on the number of threads.
//
// On the CPU the calling thread keeps a packed copy of x (at most 1536 rows) between calls: nothing
// is allocated once the largest x was seen.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// Bytes of a panel-layout weight: kPanel of dtype, or kPanelPairs (int8).
size_t panel_bytes(int64_t n, int64_t k, DataType dtype);
size_t panel_pairs_bytes(int64_t n, int64_t k);

// Rows [row, row + w.dim(0)) of a panel [n, k] <- w, where w is [rows, k] (row_major_nk) or [k,
// rows] (as FasterTransformer stores floats), of any float dtype or int8; float values are
// converted to the panel's dtype. Padding rows are zeroed by the caller (zero the buffer first).
void repack_panel(Tensor panel, ConstTensor w, int64_t row, bool row_major_nk);
void repack_panel_pairs(Tensor panel, ConstTensor w, int64_t row);  // w [rows, k] int8

// x [m, k] fp32 | fp16 | bf16; w kPanel of any float dtype.
void invokeGemmFloat(Tensor y, ConstTensor x, ConstTensor w, ConstTensor bias, Stream stream);

// w kPanel int8; scale [n] fp32, applied at the end.
void invokeGemmW8A16(Tensor y, ConstTensor x, ConstTensor w, ConstTensor scale, ConstTensor bias,
                     Stream stream);

// The largest k of W8A8: the sum of k products of two bytes, each at most 2^14, fits in 31 bits.
constexpr int64_t kMaxW8A8Depth = 65536;

// codes [m, k] int8, act_scale [m] fp32, w kPanelPairs: y = s_w * s_a * int32 sum + bias.
void invokeGemmW8A8(Tensor y, ConstTensor codes, ConstTensor act_scale, ConstTensor w,
                    ConstTensor scale, ConstTensor bias, Stream stream);

}  // namespace flexq_ft
