// Multiplying warps of tiles whose products are 128 tokens wide: of 256 or 192 rows x 128 tokens,
// or 128 rows x 256 tokens. A warp multiplies one row tile with 128 tokens at a time, by the widest
// products that registers allow: int32 sums of one product and outputs of all. It waits for a
// product, adds its sums up and starts the next; the tensor core has the other warpgroups'
// meanwhile (here 256 rows):
//
//   tensor core   | g, rows 0-63   | g, rows 64-127 | g, rows 128-191 | g, rows 192-255 | g + 1 …
//   warpgroup 1                    | promote        |                 | promote         |
//   warpgroup 2   | promote        |                | promote         |                 | promote
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm_warp.cuh"

namespace flexq_kernels::gpu {

template <typename Tile, bool kDump>
struct WideMultiplier : WgmmaWarp<Tile, kDump> {
  using Warp = WgmmaWarp<Tile, kDump>;
  using typename Warp::Place;
  using Warp::at;
  static constexpr int kBlocks = Tile::kTokens / 128;
  static constexpr int kProducts = Tile::kRowTiles * kBlocks;  // of a group
  // The next group's first product is started before outputs of a tile are stored; with three
  // warpgroups there are no registers for that, and less need.
  static constexpr bool kAhead = Tile::kWarps == 8;
  static_assert(Tile::kTokens % 128 == 0);

  uint32_t a[kStepsPerGroup][4];  // of the row tile that is multiplied

  // Waits for a product, adds it up and starts the next one.
  template <int kProduct>
  __device__ __forceinline__ void finish(const Place& now, const Place& next) {
    constexpr int kRowTile = kProduct / kBlocks, kChunk = kProduct % kBlocks * 2;
    constexpr bool kLast = kProduct + 1 == kProducts;
    constexpr int kNext = kLast ? 0 : kProduct + 1;
    constexpr bool kStarts = !kLast || kAhead, kUnpacks = kStarts && kNext % kBlocks == 0;
    const Place& from = kLast ? next : now;
    float rows[2];
    this->load_row_scales(rows, now, kRowTile);
    wgmma_wait<0>();
    promote<kRowTile, kChunk, 0>(now, rows);
    TileWords words;
    if constexpr (kUnpacks) {
      if (kLast && at.left > 1) this->wait_full(from);
      this->load_row_tile(words, from, kNext / kBlocks);
    }
    promote<kRowTile, kChunk + 1, 1>(now, rows);
    if constexpr (kUnpacks) unpack_words(a, words);
    if constexpr (kStarts) start(from, kNext % kBlocks);
  }

  template <int kRowTile, int kChunk, int kSet>
  __device__ __forceinline__ void promote(const Place& of, const float (&rows)[2]) {
    float2 scales[8];
    this->template load_scales<kChunk>(scales, of);
    Warp::template promote<kRowTile, kChunk, kSet>(rows, scales);
  }

  __device__ __forceinline__ void start(const Place& of, int block) const {
    multiply_chunk<0, 128>(a, this->descriptor(of) + block * 2 * kDescriptorRows64, false);
  }

  __device__ __forceinline__ void begin(const Place& group) {
    this->wait_full(group);
    TileWords words;
    this->load_row_tile(words, group, 0);
    unpack_words(a, words);
    start(group, 0);
  }

  template <int... kProduct>
  __device__ __forceinline__ void finish_all(const Place& now, const Place& next,
                                             std::integer_sequence<int, kProduct...>) {
    (finish<kProduct>(now, next), ...);
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
      finish_all(now, next, std::make_integer_sequence<int, kProducts>());
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
