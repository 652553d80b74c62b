// In which order the tiles of a GEMM are taken.
#pragma once

namespace flexq_kernels::gpu {

#ifdef __CUDACC__
#define FLEXQ_ANYWHERE __host__ __device__
#else
#define FLEXQ_ANYWHERE
#endif

// In bands of tokens whose codes the L2 cache holds; inside a band the tokens of one row block come
// first, so that a weight is read from memory once per band.
//
//            band 0     band 1
//   rows 0   0  1  2 | 12 13
//   rows 1   3  4  5 | 14 15
//   …
struct TileOrder {
  int row_blocks = 0;
  int token_tiles = 0;
  int band = 1;  // token tiles

  struct Tile {
    int row_block;
    int token_tile;
  };

  FLEXQ_ANYWHERE int count() const { return row_blocks * token_tiles; }

  FLEXQ_ANYWHERE Tile at(int index) const {
    const int first = index / (band * row_blocks) * band;
    const int in_band = index - first * row_blocks;
    const int width = band < token_tiles - first ? band : token_tiles - first;
    return {in_band / width, first + in_band % width};
  }
};

#undef FLEXQ_ANYWHERE

}  // namespace flexq_kernels::gpu
