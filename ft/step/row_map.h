// Tensor maps of what lies row by row, as the ring takes it: of weights 16 rows x 768 bytes a
// stage, of K and V pages. Rows arrive in boxes of 128 bytes x 16 rows, swizzled.
#pragma once

#include <cstdint>

#include "ft/core/tensor.h"

namespace flexq_ft::step {

struct alignas(64) RowMap {  // a CUtensorMap
  uint8_t bytes[128];
};

// How many copies a stage is: 1, or where rows are not whole boxes of 128 bytes, one for each box.
// rows [n] of row_bytes, a multiple of 16, aligned to 16. Throws Error{kDevice} where the driver
// refuses.
int make_row_map(RowMap* map, const void* rows, int64_t n, int64_t row_bytes);

// Of K or V, pages [num_pages][kv_heads][16][head_dim] of 16-bit values, head_dim a multiple of 64:
// a copy takes the 16 rows of a page, whose number counts KV heads too.
void make_page_map(RowMap* map, ConstTensor pages);

}  // namespace flexq_ft::step
