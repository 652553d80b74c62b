// What the row-tile loops share: unpacking of a weight tile into a panel, and the padded edges.
#pragma once

#include "flexq_kernels/cpu/simd_int8.h"
#include "flexq_kernels/pack.h"

namespace flexq_kernels::FLEXQ_ISA {

constexpr int kQuads = kGroupSize / 4;               // steps of four k in a tile
constexpr int kPanelBytes = kTileRows * kGroupSize;  // one byte per weight

// A panel is [k / 4][16 rows][4 k] bytes of code + 32 (0 … 63): sixteen rows in the 32-bit lanes
// of one vector, four neighbours in k in the bytes of a lane. The packed registers hold just such
// lanes (pack/pack_cpu.cc draws the tile), so unpacking moves and masks 32-bit words.
#if defined(__AVX2__)

FLEXQ_SIMD __m256i merge_lanes(__m256i a, __m256i b, bool high) {
  return high ? _mm256_permute2x128_si256(a, b, 0x31) : _mm256_permute2x128_si256(a, b, 0x20);
}

// words[i][h] <- word 4 * chunk + i of the eight lanes with t = t_pair + h, in order of g.
FLEXQ_SIMD void transpose_chunk(__m256i (*words)[2], const uint8_t* chunk, int t_pair) {
  __m256i half[2][4];  // [g / 4][word], each 128-bit half four g of one t
  for (int h = 0; h < 2; ++h) {
    const uint8_t* p = chunk + 256 * h + 16 * t_pair;
    const __m256i g0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i g1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64));
    const __m256i g2 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 128));
    const __m256i g3 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 192));
    const __m256i low01 = _mm256_unpacklo_epi32(g0, g1), high01 = _mm256_unpackhi_epi32(g0, g1);
    const __m256i low23 = _mm256_unpacklo_epi32(g2, g3), high23 = _mm256_unpackhi_epi32(g2, g3);
    half[h][0] = _mm256_unpacklo_epi64(low01, low23);
    half[h][1] = _mm256_unpackhi_epi64(low01, low23);
    half[h][2] = _mm256_unpacklo_epi64(high01, high23);
    half[h][3] = _mm256_unpackhi_epi64(high01, high23);
  }
  for (int i = 0; i < 4; ++i) {
    words[i][0] = merge_lanes(half[0][i], half[1][i], false);
    words[i][1] = merge_lanes(half[0][i], half[1][i], true);
  }
}

FLEXQ_SIMD void unpack_panel(uint8_t* panel, const uint8_t* tile) {
  const __m256i low_six = _mm256_set1_epi8(0x3f), low_two = _mm256_set1_epi8(0x03);
  const __m256i offset = _mm256_set1_epi8(0x20);
  for (int t_pair = 0; t_pair < 4; t_pair += 2) {
    __m256i words[12][2];
    for (int c = 0; c < 3; ++c) transpose_chunk(words + 4 * c, tile + 512 * c, t_pair);
    for (int s = 0; s < 4; ++s) {
      for (int h = 0; h < 2; ++h) {
        const __m256i w0 = words[3 * s][h], w1 = words[3 * s + 1][h], w2 = words[3 * s + 2][h];
        const __m256i r0 = _mm256_and_si256(_mm256_srli_epi32(w0, 2), low_six);
        const __m256i r1 = _mm256_and_si256(_mm256_srli_epi32(w1, 2), low_six);
        const __m256i r2 = _mm256_and_si256(_mm256_srli_epi32(w2, 2), low_six);
        const __m256i r3 =
            _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(w0, low_two), 4),
                                            _mm256_slli_epi32(_mm256_and_si256(w1, low_two), 2)),
                            _mm256_and_si256(w2, low_two));
        __m256i* out = reinterpret_cast<__m256i*>(panel + 64 * (8 * s + t_pair + h));
        _mm256_storeu_si256(out, _mm256_xor_si256(r0, offset));
        _mm256_storeu_si256(out + 1, _mm256_xor_si256(r1, offset));
        _mm256_storeu_si256(out + 8, _mm256_xor_si256(r2, offset));
        _mm256_storeu_si256(out + 9, _mm256_xor_si256(r3, offset));
      }
    }
  }
}

#else

FLEXQ_SIMD void unpack_panel(uint8_t* panel, const uint8_t* tile) {
  constexpr uint32_t kLowSix = 0x3f3f3f3fu, kLowTwo = 0x03030303u, kOffset = 0x20202020u;
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t words[12];
    for (int c = 0; c < 3; ++c) std::memcpy(words + 4 * c, tile + 512 * c + 16 * lane, 16);
    for (int s = 0; s < 4; ++s) {
      const uint32_t* w = words + 3 * s;
      const uint32_t r3 = ((w[0] & kLowTwo) << 4) | ((w[1] & kLowTwo) << 2) | (w[2] & kLowTwo);
      const uint32_t out[4] = {((w[0] >> 2) & kLowSix) ^ kOffset, ((w[1] >> 2) & kLowSix) ^ kOffset,
                               ((w[2] >> 2) & kLowSix) ^ kOffset, r3 ^ kOffset};
      uint8_t* to = panel + 64 * (8 * s + lane % 4) + 4 * (lane / 4);
      for (int r = 0; r < 4; ++r) std::memcpy(to + 32 * (r & 1) + 256 * (r >> 1), &out[r], 4);
    }
  }
}

#endif

// Sixteen of the `count` values at p, zeros past the end of the matrix.
FLEXQ_SIMD F32x16 load_scales(const uint16_t* p, int64_t count) {
  if (count >= kLanes) return load_fp16(p);
  uint16_t part[kLanes] = {};
  std::memcpy(part, p, static_cast<size_t>(count) * sizeof(part[0]));
  return load_fp16(part);
}
FLEXQ_SIMD F32x16 load_edge(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float part[kLanes] = {};
  std::memcpy(part, p, static_cast<size_t>(count) * sizeof(part[0]));
  return load(part);
}
FLEXQ_SIMD void store_edge(float* p, F32x16 value, int64_t count) {
  if (count >= kLanes) {
    store(p, value);
    return;
  }
  float part[kLanes];
  store(part, value);
  std::memcpy(p, part, static_cast<size_t>(count) * sizeof(part[0]));
}

// Tokens are taken in chunks whose running sums [kTokenChunk][16] stay in the first-level cache;
// within a chunk, in blocks that fit the registers.
constexpr int kTokenChunk = 128;

FLEXQ_SIMD int64_t at_most(int64_t a, int64_t limit) { return a < limit ? a : limit; }

// y [tokens, n] <- the running sums of one row tile (+ bias).
FLEXQ_SIMD void store_row_tile(float* y, const float (*sums)[kTileRows], const float* bias,
                               int64_t tokens, int64_t row, int64_t n) {
  const int64_t rows = n - row;
  if (bias == nullptr) {
    for (int64_t i = 0; i < tokens; ++i) store_edge(y + i * n + row, load(sums[i]), rows);
    return;
  }
  const F32x16 b = load_edge(bias + row, rows);
  for (int64_t i = 0; i < tokens; ++i) {
    store_edge(y + i * n + row, add(load(sums[i]), b), rows);
  }
}

}  // namespace flexq_kernels::FLEXQ_ISA
