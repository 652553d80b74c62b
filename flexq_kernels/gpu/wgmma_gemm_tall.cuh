// Multiplying warps of tiles of 256 rows x 128 tokens. A warp has two row tiles, and multiplies one
// of them with all tokens at a time, by the widest products that registers allow: int32 sums of one
// row tile and outputs of both. It waits for a product, adds its sums up and starts the next; the
// tensor core has the other warpgroup's meanwhile:
//
//   tensor core   | g, rows 0-63   | g, rows 64-127 | g, rows 128-191 | g, rows 192-255 | g + 1 …
//   warpgroup 1                    | promote        |                 | promote         |
//   warpgroup 2   | promote        |                | promote         |                 | promote
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm_warp.cuh"

namespace flexq_kernels::gpu {

template <typename Tile, bool kDump>
struct TallMultiplier : WgmmaWarp<Tile, kDump> {
  using Warp = WgmmaWarp<Tile, kDump>;
  using typename Warp::Place;
  using Warp::at;
  static_assert(Tile::kRowTiles == 2 && Tile::kTokens == 128);

  // Waits for the product of a row tile, adds it up and starts the next one's.
  template <int kRowTile>
  __device__ __forceinline__ void finish(const Place& now, const Place& next) {
    constexpr bool kLast = kRowTile == 1;
    float quarter[2];
    this->load_row_scales(quarter, now, kRowTile);
    wgmma_wait<0>();
    promote<kRowTile, 0>(now, quarter);
    if constexpr (kLast) {
      if (at.left > 1) this->wait_full(next);
    }
    TileWords words;
    this->load_row_tile(words, kLast ? next : now, kLast ? 0 : 1);
    promote<kRowTile, 1>(now, quarter);
    start(words, kLast ? next : now);
  }

  template <int kRowTile, int kChunk>
  __device__ __forceinline__ void promote(const Place& of, const float (&quarter)[2]) {
    float2 scales[8];
    this->template load_scales<kChunk>(scales, of);
    float sums[32];
    read_sums<kChunk>(sums);
    this->template use<kRowTile, kChunk>(sums, quarter, scales);
  }

  __device__ __forceinline__ void start(const TileWords& words, const Place& of) const {
    uint32_t a[kStepsPerGroup][4];
    unpack_words(a, words);
    multiply_chunk<0, Tile::kTokens>(a, this->descriptor(of), false);
  }

  // After the last group of all a product of whatever lies in the ring is started, and not used.
  __device__ __forceinline__ void run() {
    this->begin_part();
    Place now;
    TileWords words;
    this->wait_full(now);
    this->load_row_tile(words, now, 0);
    start(words, now);
#pragma unroll 1
    while (true) {
      Place next = now;
      next.advance();
      finish<0>(now, next);
      finish<1>(now, next);
      this->release(now);
      now = next;
      this->advance();
      if (at.left == 0) break;
    }
    wgmma_wait<0>();
  }
};

}  // namespace flexq_kernels::gpu
