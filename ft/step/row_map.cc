#include "ft/step/row_map.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "flexq_kernels/gpu/tensor_map.h"
#include "ft/core/check.h"
#include "ft/core/error.h"
#include "ft/kernels/paged_kv.h"
#include "ft/step/shared_map.h"

namespace flexq_ft::step {

namespace {

using Axes = std::initializer_list<flexq_kernels::gpu::TensorAxis>;

void encode(RowMap* map, const char* what, const void* rows, Axes axes) {
  static_assert(sizeof(RowMap) == sizeof(CUtensorMap));
  try {
    const CUtensorMap made = flexq_kernels::gpu::encode_tensor_map(
        what, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, rows, axes);
    std::memcpy(map->bytes, &made, sizeof made);
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kDevice, error.what());
  }
}

// Of whole boxes, so many a copy.
void encode_boxes(RowMap* map, const char* what, const void* rows, int64_t n, int64_t row_bytes,
                  int64_t boxes) {
  encode(map, what, rows,
         {{kBoxBytes, 1, kBoxBytes},
          {n, row_bytes, kStageRows},
          {row_bytes / kBoxBytes, kBoxBytes, boxes}});
}

}  // namespace

int make_row_map(RowMap* map, const void* rows, int64_t n, int64_t row_bytes) {
  constexpr int64_t kBoxes = kRowBytes / kBoxBytes;
  if (row_bytes % kBoxBytes == 0) {
    encode_boxes(map, "weight rows", rows, n, row_bytes, kBoxes);
    return 1;
  }
  encode(map, "weight rows", rows,
         {{row_bytes, 1, kBoxBytes}, {n, row_bytes, kStageRows}, {1, n * row_bytes, 1}});
  return static_cast<int>(kBoxes);
}

void make_page_map(RowMap* map, ConstTensor pages) {
  static_assert(kPageTokens == kStageRows);
  const int64_t rows = pages.dim(0) * pages.dim(1) * kPageTokens;
  FLEXQ_FT_CHECK_LE(rows, int64_t{INT32_MAX}, "tokens times KV heads of a step's cache");
  const int64_t row_bytes = pages.dim(3) * 2;
  encode_boxes(map, "K or V pages", pages.raw(), rows, row_bytes, row_bytes / kBoxBytes);
}

}  // namespace flexq_ft::step
