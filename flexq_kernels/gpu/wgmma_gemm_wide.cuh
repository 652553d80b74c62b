// Multiplying warps of tiles of 256 or 192 rows x 128 tokens. A warp multiplies one of its row
// tiles with all tokens at a time, by the widest products that registers allow: int32 sums of one
// row tile and outputs of all. It waits for a product, adds its sums up and starts the next; the
// tensor core has the other warpgroups' meanwhile (here 256 rows):
//
//   tensor core   | g, rows 0-63   | g, rows 64-127 | g, rows 128-191 | g, rows 192-255 | g + 1 …
//   warpgroup 1                    | promote        |                 | promote         |
//   warpgroup 2   | promote        |                | promote         |                 | promote
#pragma once

#include <utility>

#include "flexq_kernels/gpu/wgmma_gemm_warp.cuh"

namespace flexq_kernels::gpu {

template <typename Tile, bool kDump>
struct WideMultiplier : WgmmaWarp<Tile, kDump> {
  using Warp = WgmmaWarp<Tile, kDump>;
  using typename Warp::Place;
  using Warp::at;
  // The next group's first product is started before outputs of a tile are stored; with three
  // warpgroups there are no registers for that, and less need.
  static constexpr bool kAhead = Tile::kWarps == 8;
  static_assert(Tile::kTokens == 128);

  // Waits for the product of a row tile, adds it up and starts the next one's.
  template <int kRowTile>
  __device__ __forceinline__ void finish(const Place& now, const Place& next) {
    constexpr bool kLast = kRowTile + 1 == Tile::kRowTiles, kStarts = !kLast || kAhead;
    const Place& from = kLast ? next : now;
    float rows[2];
    this->load_row_scales(rows, now, kRowTile);
    wgmma_wait<0>();
    promote<kRowTile, 0>(now, rows);
    TileWords words;
    if constexpr (kStarts) {
      if (kLast && at.left > 1) this->wait_full(from);
      this->load_row_tile(words, from, kLast ? 0 : kRowTile + 1);
    }
    promote<kRowTile, 1>(now, rows);
    if constexpr (kStarts) start(words, from);
  }

  template <int kRowTile, int kChunk>
  __device__ __forceinline__ void promote(const Place& of, const float (&rows)[2]) {
    float2 scales[8];
    this->template load_scales<kChunk>(scales, of);
    Warp::template promote<kRowTile, kChunk, kChunk>(rows, scales);
  }

  __device__ __forceinline__ void start(const TileWords& words, const Place& of) const {
    uint32_t a[kStepsPerGroup][4];
    unpack_words(a, words);
    multiply_chunk<0, Tile::kTokens>(a, this->descriptor(of), false);
  }

  __device__ __forceinline__ void begin(const Place& group) const {
    this->wait_full(group);
    TileWords words;
    this->load_row_tile(words, group, 0);
    start(words, group);
  }

  template <int... kRowTile>
  __device__ __forceinline__ void finish_all(const Place& now, const Place& next,
                                             std::integer_sequence<int, kRowTile...>) {
    (finish<kRowTile>(now, next), ...);
  }

  // Ahead, a product of whatever lies in the ring is started after the last of all, and not used.
  __device__ __forceinline__ void run() {
    this->begin_part();
    Place now;
    begin(now);
#pragma unroll 1
    while (true) {
      Place next = now;
      next.advance();
      finish_all(now, next, std::make_integer_sequence<int, Tile::kRowTiles>());
      this->release(now);
      now = next;
      this->advance();
      if (at.left == 0) break;
      if constexpr (!kAhead) begin(now);
    }
    if constexpr (kAhead) wgmma_wait<0>();
  }
};

}  // namespace flexq_kernels::gpu
