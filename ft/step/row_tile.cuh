// The product of 16 rows of a weight, stage by stage out of the ring, with the operand of up to
// eight tokens (token_input.cuh): each warp takes a fixed part of every stage, so that a row's
// partial sums depend on its k alone. Lane 4g + t has in at(0) … at(3): rows r, r, r + 8, r + 8 with r
// = row_of(g), of tokens 2t, 2t + 1, 2t, 2t + 1.
#pragma once

#include "flexq_kernels/gpu/tile_product.cuh"
#include "ft/kernels/skinny_gemm.cuh"
#include "ft/step/block.cuh"

namespace flexq_ft::step {

template <typename T, Format kFormat>
struct RowTile;

// Rows as they lie in memory, 768 bytes of each in a stage: boxes of 128 bytes x 16 rows, in which
// the 16-byte piece i of row r is at i ^ r % 8. The order of a sum over k is that of skinny_gemm.cuh:
// lane t of a quad takes piece t of 64 bytes. A warp takes 64 bytes of all rows, and the next ones
// eight times further on. Rows are dealt to lanes so that two neighbouring quads of lanes read all
// banks.
template <typename T, Format kFormat>
struct StoredRows {
  static constexpr bool kHalf = std::is_same_v<T, __half>;
  static constexpr gpu::SkinnyMath kMath =
      kFormat == Format::kW8A8    ? gpu::SkinnyMath::kInt8
      : kFormat == Format::kFloat ? (kHalf ? gpu::SkinnyMath::kFp16 : gpu::SkinnyMath::kBf16)
                                  : (kHalf ? gpu::SkinnyMath::kW8Fp16 : gpu::SkinnyMath::kW8Bf16);
  using Traits = gpu::SkinnyTraits<kMath>;
  using Sum = typename Traits::Sum;
  static constexpr int kElement = kFormat == Format::kFloat ? 2 : 1;  // bytes of a weight
  static constexpr int kPiece = 64;                                   // bytes of a row, for a warp

  static __device__ __forceinline__ int stages(int k) {
    return (k * kElement + kRowBytes - 1) / kRowBytes;
  }
  // The row of the tile that lanes 4g … 4g + 3 hold; the other one is eight further on.
  static __device__ __forceinline__ int row_of(int g) { return g / 2 + g % 2 * 4; }

  static constexpr int kPieces = (kRowBytes / kPiece + kWarps - 1) / kWarps;  // of a warp, in a stage

  // What a warp multiplies of one stage.
  struct Operands {
    uint4 weights[kPieces][1][2];
    uint4 tokens[kPieces][Traits::kXPieces][1];
    int pieces;
  };

  Sum sum[1][1][4] = {};

  __device__ __forceinline__ Sum at(int i) const { return sum[0][0][i]; }

  static __device__ __forceinline__ Operands load(const Place& place, uint32_t stage, int index,
                                                  int k) {
    Operands out;
    const int left = min(k * kElement - index * kRowBytes, kRowBytes);  // bytes of a row
    out.pieces = left <= place.warp * kPiece
                     ? 0
                     : (left - place.warp * kPiece + kWarps * kPiece - 1) / (kWarps * kPiece);
    const int g = place.lane / 4, t = place.lane % 4;
    const Args& args = place.args;
    const int row = row_of(g);
    constexpr int kXBytes = 16 * Traits::kXPieces;
    const uint32_t x = place.at(args.map.tokens + min(g, args.tokens - 1) * args.map.token_pitch) +
                       static_cast<uint32_t>(index * kRowBytes * Traits::kXPieces + t * kXBytes);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i >= out.pieces) continue;
      const int piece = place.warp + i * kWarps;
      const int unit = piece % 2 * 4 + t;
      const uint32_t box = stage + static_cast<uint32_t>(piece / 2 * kStageRows * kBoxBytes +
                                                         row * kBoxBytes + (unit ^ row % 8) * 16);
      out.weights[i][0][0] = flexq_kernels::gpu::load_shared_words(box);
      out.weights[i][0][1] = flexq_kernels::gpu::load_shared_words(box + 8 * kBoxBytes);
#pragma unroll
      for (int p = 0; p < Traits::kXPieces; ++p) {
        out.tokens[i][p][0] = flexq_kernels::gpu::load_shared_words(
            x + static_cast<uint32_t>(piece * kPiece * Traits::kXPieces + p * 16));
      }
    }
    return out;
  }

  __device__ __forceinline__ void multiply(const Operands& x) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i >= x.pieces) continue;
#pragma unroll
      for (int p = 0; p < Traits::kXPieces; ++p) {
        gpu::multiply_chunk<kMath>(sum, x.weights[i], x.tokens[i][p], p, 0);
      }
    }
  }
};

template <typename T>
struct RowTile<T, Format::kFloat> : StoredRows<T, Format::kFloat> {};
template <typename T>
struct RowTile<T, Format::kW8A16> : StoredRows<T, Format::kW8A16> {};
template <typename T>
struct RowTile<T, Format::kW8A8> : StoredRows<T, Format::kW8A8> {};

// Eight tiles of 16 x 128 codes in a stage, one for each warp, and their scales behind them.
template <typename T>
struct RowTile<T, Format::kW6> {
  using Sum = float;

  static __device__ __forceinline__ int stages(int k) {
    return (static_cast<int>(flexq_kernels::group_count(k)) + kStageTiles - 1) / kStageTiles;
  }

  static __device__ __forceinline__ int row_of(int g) { return g; }

  struct Operands {
    flexq_kernels::gpu::TileWords words;
    flexq_kernels::gpu::TileScales scales;
    flexq_kernels::gpu::TokenFragment<1> tokens;
    bool any;
  };

  float sum[1][4] = {};

  __device__ __forceinline__ float at(int i) const { return sum[0][i]; }

  static __device__ __forceinline__ Operands load(const Place& place, uint32_t stage, int index,
                                                  int k) {
    namespace fg = flexq_kernels::gpu;
    Operands out;
    const int group = index * kStageTiles + place.warp;
    out.any = group * kGroup < k;
    if (!out.any) return out;
    const Args& args = place.args;
    const int g = place.lane / 4, t = place.lane % 4;
    out.words = fg::load_tile(
        stage + static_cast<uint32_t>(place.warp * flexq_kernels::kTileBytes), place.lane);
    out.scales = fg::load_tile_scales(
        stage + static_cast<uint32_t>(kStageTiles * flexq_kernels::kTileBytes +
                                      place.warp * fg::kTileScaleBytes),
        place.lane);
    const uint32_t codes =
        place.at(args.map.tokens + min(g, args.tokens - 1) * args.map.token_pitch) +
        static_cast<uint32_t>(group * kGroup + t * 32);
    out.tokens.codes[0][0] = fg::load_shared_words(codes);
    out.tokens.codes[0][1] = fg::load_shared_words(codes + 16);
    out.tokens.scales[0] = fg::load_shared_pair(
        place.at(args.map.scales +
                 (group * args.map.scale_tokens + min(2 * t, (args.tokens - 1) / 2 * 2)) * 4));
    return out;
  }

  __device__ __forceinline__ void multiply(const Operands& x) {
    if (!x.any) return;
    int32_t sums[1][4];
    flexq_kernels::gpu::multiply_tile<1>(sums, x.words, x.tokens);
    flexq_kernels::gpu::add_scaled<1>(sum, sums, x.scales, x.tokens);
  }
};

}  // namespace flexq_ft::step
