// Tensor maps of weights that lie row by row, as the ring takes them: 16 rows x 768 bytes a stage.
#pragma once

#include <cstdint>

namespace flexq_ft::step {

struct alignas(64) RowMap {  // a CUtensorMap
  uint8_t bytes[128];
};

// How many copies a stage is: 1, or where rows are not whole boxes of 128 bytes, one for each box.
// rows [n] of row_bytes, a multiple of 16, aligned to 16. Throws Error{kDevice} where the driver
// refuses.
int make_row_map(RowMap* map, const void* rows, int64_t n, int64_t row_bytes);

}  // namespace flexq_ft::step
