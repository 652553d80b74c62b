// What pack.cc dispatches to; arguments are checked there.
#pragma once

#include <cstdint>

namespace flexq_kernels {

void pack_int6_cpu(uint8_t* packed, const int8_t* codes, int64_t n, int64_t k);
void unpack_int6_cpu(int8_t* codes, const uint8_t* packed, int64_t n, int64_t k);
void tile_scales_cpu(uint16_t* tiled, const uint16_t* scales, int64_t n, int64_t k);

}  // namespace flexq_kernels
