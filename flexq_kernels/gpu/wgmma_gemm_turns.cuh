// Multiplying warps of tiles of 192 rows x 128 tokens: three warpgroups take turns at the tensor
// core, each with a product of all 128 tokens. Products that shared it would all end late, and at
// the same time; so a warpgroup begins when the one in front has a quarter of its product left.
//
//   tensor core   | g, rows 0-63 | g, rows 64-127 | g, rows 128-191 | g + 1, rows 0-63 | …
//   warpgroup 1                  | promote        | unpack g + 1    |
//   warpgroup 2     unpack g     |                | promote         | unpack g + 1     |
//   warpgroup 3     promote      | unpack g       |                 | promote          |
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm_warp.cuh"

namespace flexq_kernels::gpu {

template <typename Tile, bool kDump>
struct TurnsMultiplier : WgmmaWarp<Tile, kDump> {
  using Warp = WgmmaWarp<Tile, kDump>;
  using typename Warp::Place;
  using Warp::at, Warp::warp;
  static constexpr int kTurns = Tile::kWarps / 4;  // warpgroups
  static_assert(Tile::kRowTiles == 1 && Tile::kTokens == 128);

  // Barrier 1 + w: warpgroup w waits for it, the one in front arrives.
  __device__ __forceinline__ void wait_turn() const { barrier_sync<256>(1 + warp / 4); }

  // To the next one; the last turn of all has none behind it.
  __device__ __forceinline__ void hand_turn() const {
    const int next = warp / 4 + 1;
    if (next < kTurns) barrier_arrive<256>(1 + next);
    if (next == kTurns && at.left > 1) barrier_arrive<256>(1);
  }

  __device__ __forceinline__ void start(const Place& of) const {
    this->wait_full(of);
    TileWords words;
    this->load_row_tile(words, of, 0);
    uint32_t a[kStepsPerGroup][4];
    unpack_words(a, words);
    const uint32_t tokens = this->descriptor(of);
    wait_turn();
    multiply_handing_on(a, tokens);
  }

  template <int kChunk>
  __device__ __forceinline__ void promote(const Place& of, const float (&quarter)[2]) {
    float2 scales[8];
    this->template load_scales<kChunk>(scales, of);
    float sums[32];
    read_sums<kChunk>(sums);
    this->template use<0, kChunk>(sums, quarter, scales);
  }

  __device__ __forceinline__ void run() {
    if (warp / 4 == kTurns - 1) barrier_arrive<256>(1);  // the first turn
    this->begin_part();
    Place now;
    start(now);
#pragma unroll 1
    while (true) {
      float quarter[2];
      this->load_row_scales(quarter, now, 0);
      wgmma_wait<1>();
      hand_turn();
      wgmma_wait<0>();
      promote<0>(now, quarter);
      promote<1>(now, quarter);
      this->release(now);
      this->advance();
      if (at.left == 0) break;
      now.advance();
      start(now);
    }
  }
};

}  // namespace flexq_kernels::gpu
