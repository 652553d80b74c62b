// Packing of six-bit codes and their scales: checks and dispatch.
#include "flexq_kernels/pack/pack_cpu.h"

#include "flexq_kernels/check.h"
#include "flexq_kernels/pack.h"

namespace flexq_kernels {

namespace {

void check_matrix(const void* to, const void* from, int64_t n, int64_t k) {
  FLEXQ_CHECK(n >= 0 && k >= 1 && n <= kMaxExtent && k <= kMaxExtent, "cannot pack a matrix [", n,
              ", ", k, "]: n must be 0 … ", kMaxExtent, ", k 1 … ", kMaxExtent);
  FLEXQ_CHECK(n == 0 || (to != nullptr && from != nullptr), "matrix [", n, ", ", k,
              "] without memory for its codes or scales");
}

}  // namespace

void pack_int6(uint8_t* packed, const int8_t* codes, int64_t n, int64_t k) {
  check_matrix(packed, codes, n, k);
  if (n > 0) pack_int6_cpu(packed, codes, n, k);
}

void unpack_int6(int8_t* codes, const uint8_t* packed, int64_t n, int64_t k) {
  check_matrix(packed, codes, n, k);
  if (n > 0) unpack_int6_cpu(codes, packed, n, k);
}

void scales_by_group(uint16_t* scales, const uint16_t* row_scales, int64_t n, int64_t k) {
  check_matrix(scales, row_scales, n, k);
  const int64_t groups = group_count(k);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t g = 0; g < groups; ++g) scales[g * n + row] = row_scales[row * groups + g];
  }
}

void tile_scales(uint16_t* tiled, const uint16_t* scales, int64_t n, int64_t k) {
  check_matrix(tiled, scales, n, k);
  if (n > 0) tile_scales_cpu(tiled, scales, n, k);
}

}  // namespace flexq_kernels
