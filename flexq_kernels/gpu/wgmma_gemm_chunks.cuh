// Multiplying warps of tiles of 128 rows x 64 to 192 tokens. A warp unpacks its row tile once per
// group, into one of two sets of A registers, and multiplies 64 tokens (a chunk) at a time into one
// of two sets of int32 sums. While the tensor core works on a chunk, the one in front is turned
// into floats and added up (here three chunks; the sets change their roles from group to group, and
// tiles follow each other like groups):
//
//   tensor core   | g, chunk 0 | g, chunk 1            | g, chunk 2 | g + 1, chunk 0 | …
//   sums in set   | 0          | 1                     | 0          | 1              |
//   warp                       | promote 0, load g + 1 | promote 1, | give stage g   |
//                                                        unpack       back, promote 2
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm_warp.cuh"

namespace flexq_kernels::gpu {

template <typename Tile, bool kDump>
struct ChunkMultiplier : WgmmaWarp<Tile, kDump> {
  using Warp = WgmmaWarp<Tile, kDump>;
  using typename Warp::Place;
  using Warp::at, Warp::p, Warp::kChunks;

  // A group as it comes out of the ring.
  struct Group {
    Place at;
    uint32_t codes;  // descriptor of the tokens' codes
    float rows[2];   // scales of the lane's
  };

  uint32_t a[2][kStepsPerGroup][4];

  __device__ __forceinline__ void load(Group& of, TileWords& words) const {
    this->load_row_tile(words, of.at, 0);
    this->load_row_scales(of.rows, of.at, 0);
  }

  // Starts what comes after a chunk, the next group's first after the last; then promotes it.
  template <int kParity, int kChunk>
  __device__ __forceinline__ void chunk(const Group& now, Group& next) {
    constexpr int kSet = (kParity * kChunks + kChunk) % 2;
    constexpr bool kLast = kChunk + 1 == kChunks;
    constexpr bool kLoads = kChunk == (kChunks == 1 ? 0 : kChunks - 2);
    TileWords words;
    if constexpr (kLoads && kLast) {
      if (at.left > 1) this->wait_full(next.at);
      load(next, words);
      unpack_words(a[1 - kParity], words);
    }
    if constexpr (kLast) {
      multiply_chunk<1 - kSet, kWgmmaChunk>(a[1 - kParity], next.codes, p.groups < 0);
    } else {
      multiply_chunk<1 - kSet, kWgmmaChunk>(
          a[kParity], now.codes + (kChunk + 1) * kDescriptorRows64, p.groups < 0);
    }
    float2 scales[8];
    this->template load_scales<kChunk>(scales, now.at);
    wgmma_wait<1>();
    if constexpr (kLast) this->release(now.at);
    if constexpr (kLoads && !kLast) {
      if (at.left > 1) this->wait_full(next.at);
    }
    this->template promote<0, kChunk, kSet>(now.rows, scales);
    if constexpr (kLoads && !kLast) {
      load(next, words);
      unpack_words(a[1 - kParity], words);
    }
  }

  template <int kParity, int... kChunk>
  __device__ __forceinline__ void chunks(const Group& now, Group& next,
                                         std::integer_sequence<int, kChunk...>) {
    (chunk<kParity, kChunk>(now, next), ...);
  }

  // A group whose first chunk is under way. After the last of all, the first chunk of whatever lies
  // in the ring is multiplied, and not used: the loop needs no other code for its end.
  template <int kParity>
  __device__ __forceinline__ void step(Group& now) {
    Group next;
    next.at = now.at;
    next.at.advance();
    next.codes = this->descriptor(next.at);
    chunks<kParity>(now, next, std::make_integer_sequence<int, kChunks>());
    now = next;
  }

  __device__ __forceinline__ void run() {
    this->begin_part();
    Group now;
    now.codes = this->descriptor(now.at);
    TileWords words;
    this->wait_full(now.at);
    load(now, words);
    unpack_words(a[0], words);
    multiply_chunk<0, kWgmmaChunk>(a[0], now.codes, p.groups < 0);
    while (true) {
      step<0>(now);
      this->advance();
      if (at.left == 0) break;
      step<1>(now);
      this->advance();
      if (at.left == 0) break;
    }
    // Never so, but without a way on the assembler waits for each wgmma of the loop (C7514).
    if (p.groups < 0) {
      step<0>(now);
    } else {
      wgmma_wait<0>();
    }
  }
};

}  // namespace flexq_kernels::gpu
