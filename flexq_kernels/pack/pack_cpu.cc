// The layout frag16x128 in plain loops. Four weights that are neighbours in k stay neighbours in
// a 32-bit register, so a tile is moved register by register and no byte is shuffled.
//
//   tile [16 rows x 128 k], 1536 bytes = 3 chunks of 32 lanes x 16 bytes
//   lane l = 4g + t (g = 0..7, t = 0..3) owns words W[0..11]; W[i] = chunk i/4, word i%4
//   k-step s = 0..3 uses W[3s], W[3s+1], W[3s+2]:
//
//     byte b of   bits 7..2     bits 1..0       register r, byte b is the weight at
//     W[3s+0]     code of R0    R3 bits 5..4      row = g + 8 * (r & 1)
//     W[3s+1]     code of R1    R3 bits 3..2      k   = 32s + 16 * (r >> 1) + 4t + b
//     W[3s+2]     code of R2    R3 bits 1..0
#include <cstring>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/pack/pack_cpu.h"

namespace flexq_kernels {

namespace {

constexpr uint32_t kHighSix = 0xfcfcfcfcu;
constexpr uint32_t kLowSix = 0x3f3f3f3fu;
constexpr uint32_t kLowTwo = 0x03030303u;

// Byte offset of word i of lane l in a tile.
constexpr int word_offset(int lane, int i) { return 512 * (i / 4) + 16 * lane + 4 * (i % 4); }

uint32_t load_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

void store_word(void* p, uint32_t word) { std::memcpy(p, &word, sizeof(word)); }

// Six-bit two's complement in each byte -> int8 in each byte.
uint32_t sign_extend(uint32_t codes) {
  const uint32_t sign = codes & 0x20202020u;
  return codes | (sign << 1) | (sign << 2);
}

void pack_tile(uint8_t* tile, const int8_t* codes, int64_t row_stride) {
  for (int lane = 0; lane < 32; ++lane) {
    const int8_t* top = codes + (lane / 4) * row_stride + 4 * (lane % 4);
    const int8_t* bottom = top + 8 * row_stride;
    for (int s = 0; s < 4; ++s) {
      const uint32_t r3 = load_word(bottom + 32 * s + 16);
      store_word(tile + word_offset(lane, 3 * s),
                 ((load_word(top + 32 * s) << 2) & kHighSix) | ((r3 >> 4) & kLowTwo));
      store_word(tile + word_offset(lane, 3 * s + 1),
                 ((load_word(bottom + 32 * s) << 2) & kHighSix) | ((r3 >> 2) & kLowTwo));
      store_word(tile + word_offset(lane, 3 * s + 2),
                 ((load_word(top + 32 * s + 16) << 2) & kHighSix) | (r3 & kLowTwo));
    }
  }
}

void unpack_tile(int8_t* codes, int64_t row_stride, const uint8_t* tile) {
  for (int lane = 0; lane < 32; ++lane) {
    int8_t* top = codes + (lane / 4) * row_stride + 4 * (lane % 4);
    int8_t* bottom = top + 8 * row_stride;
    for (int s = 0; s < 4; ++s) {
      const uint32_t w0 = load_word(tile + word_offset(lane, 3 * s));
      const uint32_t w1 = load_word(tile + word_offset(lane, 3 * s + 1));
      const uint32_t w2 = load_word(tile + word_offset(lane, 3 * s + 2));
      const uint32_t r3 = ((w0 & kLowTwo) << 4) | ((w1 & kLowTwo) << 2) | (w2 & kLowTwo);
      store_word(top + 32 * s, sign_extend((w0 >> 2) & kLowSix));
      store_word(bottom + 32 * s, sign_extend((w1 >> 2) & kLowSix));
      store_word(top + 32 * s + 16, sign_extend((w2 >> 2) & kLowSix));
      store_word(bottom + 32 * s + 16, sign_extend(r3));
    }
  }
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

void pack_int6_cpu(uint8_t* packed, const int8_t* codes, int64_t n, int64_t k) {
  const int64_t groups = group_count(k);
  parallel_ranges(row_tiles(n), n * k, [&](int64_t begin, int64_t end) {
    int8_t padded[kTileRows * kGroupSize];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t rows = least(kTileRows, n - t * kTileRows);
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* tile = packed + (t * groups + g) * kTileBytes;
        const int8_t* source = codes + t * kTileRows * k + g * kGroupSize;
        const int64_t depth = least(kGroupSize, k - g * kGroupSize);
        if (rows == kTileRows && depth == kGroupSize) {
          pack_tile(tile, source, k);
          continue;
        }
        std::memset(padded, 0, sizeof(padded));
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(padded + r * kGroupSize, source + r * k, depth);
        }
        pack_tile(tile, padded, kGroupSize);
      }
    }
  });
}

void unpack_int6_cpu(int8_t* codes, const uint8_t* packed, int64_t n, int64_t k) {
  const int64_t groups = group_count(k);
  parallel_ranges(row_tiles(n), n * k, [&](int64_t begin, int64_t end) {
    int8_t padded[kTileRows * kGroupSize];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t rows = least(kTileRows, n - t * kTileRows);
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* tile = packed + (t * groups + g) * kTileBytes;
        int8_t* target = codes + t * kTileRows * k + g * kGroupSize;
        const int64_t depth = least(kGroupSize, k - g * kGroupSize);
        if (rows == kTileRows && depth == kGroupSize) {
          unpack_tile(target, k, tile);
          continue;
        }
        unpack_tile(padded, kGroupSize, tile);
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(target + r * k, padded + r * kGroupSize, depth);
        }
      }
    }
  });
}

void tile_scales_cpu(uint16_t* tiled, const uint16_t* scales, int64_t n, int64_t k) {
  const int64_t groups = group_count(k);
  parallel_ranges(row_tiles(n), n * groups, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t rows = least(kTileRows, n - t * kTileRows);
      for (int64_t g = 0; g < groups; ++g) {
        uint16_t* tile = tiled + (t * groups + g) * kTileRows;
        for (int64_t r = 0; r < kTileRows; ++r) {
          tile[r] = r < rows ? scales[g * n + t * kTileRows + r] : uint16_t{0};
        }
      }
    }
  });
}

}  // namespace flexq_kernels
