#include "ft/step/row_map.h"

#include <cstring>
#include <stdexcept>

#include "flexq_kernels/gpu/tensor_map.h"
#include "ft/core/error.h"
#include "ft/step/shared_map.h"

namespace flexq_ft::step {

int make_row_map(RowMap* map, const void* rows, int64_t n, int64_t row_bytes) {
  static_assert(sizeof(RowMap) == sizeof(CUtensorMap));
  constexpr int64_t kBoxes = kRowBytes / kBoxBytes;
  const bool whole = row_bytes % kBoxBytes == 0;
  const auto encode = [&](std::initializer_list<flexq_kernels::gpu::TensorAxis> axes) {
    const CUtensorMap made = flexq_kernels::gpu::encode_tensor_map(
        "weight rows", CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, rows, axes);
    std::memcpy(map->bytes, &made, sizeof made);
  };
  try {
    if (whole) {
      encode({{kBoxBytes, 1, kBoxBytes},
              {n, row_bytes, kStageRows},
              {row_bytes / kBoxBytes, kBoxBytes, kBoxes}});
      return 1;
    }
    encode({{row_bytes, 1, kBoxBytes}, {n, row_bytes, kStageRows}, {1, n * row_bytes, 1}});
    return static_cast<int>(kBoxes);
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kDevice, error.what());
  }
}

}  // namespace flexq_ft::step
