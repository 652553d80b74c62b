// What the host hands to the wgmma kernel: tensor maps of its operands and the order of its tiles.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing is linked

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/gpu/store_target.h"
#include "flexq_kernels/gpu/wgmma_gemm.h"

namespace flexq_kernels::gpu {

constexpr int kWgmmaRows = 128;  // of a block: two warpgroups of 64

// Tiles are taken in bands of tokens that the L2 cache holds; inside a band the tokens of one row
// block come first, so that a weight is read from memory once per band.
//
//             band 0      band 1            a tile: `cluster` blocks of 128 rows x config.tokens
//   rows 0    0  1  2 | 12 13
//   rows 1    3  4  5 | 14 15
//   …
struct WgmmaTiles {
  int row_blocks = 0;  // clusters' rows
  int token_tiles = 0;
  int band = 1;  // token tiles

  struct Tile {
    int row_block;
    int token_tile;
  };

#ifdef __CUDACC__
  __host__ __device__
#endif
      int count() const {
    return row_blocks * token_tiles;
  }

#ifdef __CUDACC__
  __host__ __device__
#endif
      Tile at(int index) const {
    const int first = index / (band * row_blocks) * band;
    const int in_band = index - first * row_blocks;
    const int width = band < token_tiles - first ? band : token_tiles - first;
    return {in_band / width, first + in_band % width};
  }
};

struct WgmmaParams {
  CUtensorMap weight_codes;   // [row tile][group][1536 bytes], in boxes of 8 x 1 x 1536 bytes
  CUtensorMap weight_scales;  // [row tile][group][16] fp16, in boxes of 8 x 1 x 16
  CUtensorMap codes;          // [token][k], in boxes of (tokens / cluster) x 128, swizzled
  CUtensorMap scales;         // [group][token], in boxes of 1 x tokens
  StoreTarget y;
  FloatType type = FloatType::kFp32;
  int32_t* sums = nullptr;  // [m, n, groups] instead of y
  int groups = 0;
  WgmmaTiles tiles;
};

// Throws std::runtime_error where the driver has no tensor maps or refuses one.
void encode_tensor_maps(WgmmaParams& params, const Activations& x, const Weight& w,
                        const GemmProblem& problem, const WgmmaConfig& config);

}  // namespace flexq_kernels::gpu
