// Packing on a GPU: the same bytes as flexq_kernels/pack.h makes, from and to device memory.
//
// Pointers are to memory of the current device, aligned to 16 bytes. Nothing allocates or
// synchronises; sizes and pointers are checked as on the CPU (std::invalid_argument).
//
// Products read weights before they wait for what is in front of them: the first one behind these
// is an ordinary launch, not a programmatic one.
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/pack.h"

namespace flexq_kernels::gpu {

// packed [packed_bytes(n, k)] <- codes [n, k].
void pack_int6(uint8_t* packed, const int8_t* codes, int64_t n, int64_t k, const Launch& launch);

// codes [n, k] <- packed.
void unpack_int6(int8_t* codes, const uint8_t* packed, int64_t n, int64_t k, const Launch& launch);

// tiled [row_tiles(n)][group_count(k)][16] <- scales [group_count(k)][n].
void tile_scales(uint16_t* tiled, const uint16_t* scales, int64_t n, int64_t k,
                 const Launch& launch);

}  // namespace flexq_kernels::gpu
