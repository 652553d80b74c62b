// Where a bit lies in the planes of the binary kernel: the one place that its packers, the kernel
// and the tests ask.
//
// A plane is one bit of each code. A word holds a plane of 32 neighbours in k, bit k % 32, so four
// words are a group of 128, one for each lane t of a quad, as mma.m16n8k256 wants its operands:
//
//   weight tile, 16 rows x 128 k: 1536 bytes, in place of the packed tile; lane l = 4g + t, t = k /
//   32
//     chunk c = 0 … 2:  | lane 0: 16 bytes | lane 1 | ... | lane 31 |      planes 2c and 2c + 1
//     its four words:     plane 2c of row g | plane 2c of row g + 8 | plane 2c + 1 of g | of g + 8
//     that is                     A0        |          A1           |        A2         |   A3
//
//   activation block, 8 tokens x 128 k, P = 6 or 8 planes; lane l = 4 * token + t
//     chunk c = 0 … P/2 - 1:  | lane 0: 8 bytes | ... | lane 31 |          planes 2c and 2c + 1
//     then eight int32, one per token:  -32 * the sum of its codes
//
// Weights are stored as code + 32 (0 … 63), so that all six planes count upwards; what that adds
// too much is the int32 at the end of a block. Activations are two's complement: their last plane
// counts downwards.
#pragma once

#include <cstdint>

#include "flexq_kernels/pack.h"

namespace flexq_kernels::gpu {

constexpr int kWeightPlanes = 6;
constexpr int kWeightOffset = 32;  // of the stored codes
constexpr int kBtcTokens = 8;      // of an activation block

// The word, in a weight tile, of a plane of row r (of 16) at k (of 128).
constexpr int btc_weight_word(int row, int k, int plane) {
  const int lane = 4 * (row % 8) + k / 32;
  return plane / 2 * 128 + lane * 4 + plane % 2 * 2 + row / 8;
}

// The word, in an activation block, of a plane of token i (of 8) at k.
constexpr int btc_activation_word(int token, int k, int plane) {
  return plane / 2 * 64 + (4 * token + k / 32) * 2 + plane % 2;
}

// The word of a token's offset.
constexpr int btc_offset_word(int token, int act_bits) { return act_bits * 32 + token; }

constexpr int btc_block_words(int act_bits) { return act_bits * 32 + kBtcTokens; }

// Blocks lie [(m + 7) / 8][group_count(k)].
constexpr int64_t btc_token_blocks(int64_t m) { return (m + kBtcTokens - 1) / kBtcTokens; }
constexpr int64_t btc_activation_bytes(int64_t m, int64_t k, int act_bits) {
  return btc_token_blocks(m) * group_count(k) * btc_block_words(act_bits) * 4;
}

}  // namespace flexq_kernels::gpu
