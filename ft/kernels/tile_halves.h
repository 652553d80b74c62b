// Halves of six-bit tiles (flexq_kernels/pack.h), rows 0 … 7 and 8 … 15, on their way to where a
// weight's rows lie. Of the three words that a lane has of a step, the upper six bits of each byte
// are a code of the first, the second and the first half; the lower two of all three are, together,
// one more code of the second.
#pragma once

#include <cstdint>

#include "flexq_kernels/pack.h"
#include "ft/core/row_order.h"

namespace flexq_ft {

static_assert(flexq_kernels::kTileRows == 2 * kBandRows);

// Half a tile, of a matrix that is packed with its rows as they are given.
struct TileHalf {
  int64_t tile;
  int half;  // 0 or 1

  // The half that lies at `half` of a tile of the weight, whose rows are of so many groups.
  static constexpr TileHalf of(int64_t tile, int half, int64_t groups, RowOrder order) {
    constexpr int kTileRows = flexq_kernels::kTileRows;
    const int64_t row = order.given(tile / groups * kTileRows + half * kBandRows);
    return {row / kTileRows * groups + tile % groups, row % kTileRows < kBandRows ? 0 : 1};
  }
};

constexpr int kTileWords = flexq_kernels::kTileBytes / 4;

// What a lane has of the half `to_half` of a tile <- of the half `from_half` of another. Words.
constexpr void place_tile_half(uint32_t* to, int to_half, const uint32_t* from, int from_half,
                               int lane) {
  constexpr uint32_t kHigh = 0xfcfcfcfcu, kLow = 0x03030303u;
  for (int step = 0; step < flexq_kernels::kGroupSize / 32; ++step) {
    const auto at = [&](int i) {
      const int word = 3 * step + i;
      return word / 4 * 128 + lane * 4 + word % 4;
    };
    const uint32_t w0 = from[at(0)], w1 = from[at(1)], w2 = from[at(2)];
    // Of the step's first and second 16 k, a code in the upper six bits of each byte.
    const uint32_t near = (from_half == 0 ? w0 : w1) & kHigh;
    const uint32_t far =
        from_half == 0 ? w2 & kHigh : (w0 & kLow) << 6 | (w1 & kLow) << 4 | (w2 & kLow) << 2;
    if (to_half == 0) {
      to[at(0)] = near | (to[at(0)] & kLow);
      to[at(2)] = far | (to[at(2)] & kLow);
    } else {
      to[at(0)] = (to[at(0)] & kHigh) | (far >> 6 & kLow);
      to[at(1)] = near | (far >> 4 & kLow);
      to[at(2)] = (to[at(2)] & kHigh) | (far >> 2 & kLow);
    }
  }
}

}  // namespace flexq_ft
