// Six-bit codes in the layout frag16x128, format version 1 (docs/formats.md draws it).
//
// A matrix [N, K] is cut into tiles of 16 rows x 128 k; N is padded to 16 and K to 128 with zero
// codes. Tiles are stored row-tile by row-tile, K tiles of one row-tile contiguous, 1536 bytes
// each, in the register order of the A operand of mma.m16n8k32. Codes are two's complement, -32
// … 31.
#pragma once

#include <cstdint>

namespace flexq_kernels {

constexpr int kGroupSize = 128;  // k that share one scale; also the depth of a tile
constexpr int kTileRows = 16;
constexpr int kTileBytes = 1536;  // 16 * 128 * 6 / 8

// The largest n, k or m that the library takes: products of two fit 64 bits with room to spare.
constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1;

constexpr int64_t group_count(int64_t k) { return (k + kGroupSize - 1) / kGroupSize; }
constexpr int64_t row_tiles(int64_t n) { return (n + kTileRows - 1) / kTileRows; }
constexpr int64_t packed_bytes(int64_t n, int64_t k) {
  return row_tiles(n) * group_count(k) * kTileBytes;
}

// packed [packed_bytes(n, k)] <- codes [n, k]. Bits above the sixth are ignored, so the caller
// keeps codes within -32 … 31. Row tiles are independent: rows may be packed 16 at a time.
// Throws std::invalid_argument for sizes outside 0 … kMaxExtent (k: from 1). n == 0 is a no-op.
void pack_int6(uint8_t* packed, const int8_t* codes, int64_t n, int64_t k);

// codes [n, k] <- packed. Padding is dropped.
void unpack_int6(int8_t* codes, const uint8_t* packed, int64_t n, int64_t k);

// scales [group_count(k)][n], as on disk and as gemm_w6ax reads them <- row_scales
// [n][group_count(k)], as quantize_weight_int6 writes them; fp16 bits. Sizes as in pack_int6.
void scales_by_group(uint16_t* scales, const uint16_t* row_scales, int64_t n, int64_t k);

// The scales as the GPU kernels read them, beside the tile that they belong to:
//   tiled [row_tiles(n)][group_count(k)][16] <- scales [group_count(k)][n], as on disk; fp16 bits
// with zeros for rows past n. Sizes as in pack_int6.
void tile_scales(uint16_t* tiled, const uint16_t* scales, int64_t n, int64_t k);

constexpr int64_t tiled_scale_count(int64_t n, int64_t k) {
  return row_tiles(n) * group_count(k) * kTileRows;
}

}  // namespace flexq_kernels
