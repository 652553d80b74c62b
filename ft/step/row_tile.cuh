// The product of 16 rows of a weight, stage by stage out of the ring, with the operand of up to
// eight tokens (token_input.cuh): the teams take stages in turn, and each warp a fixed part of
// its team's, so that a row's partial sums depend on its k alone. Lane 4g + t has in at(0) … at(3):
// rows r, r, r + 8, r + 8 with r = row_of(g), of tokens 2t, 2t + 1, 2t, 2t + 1.
//
// Instructions are what a product's time is made of: all addresses are made once for an op, and
// walk.
#pragma once

#include "flexq_kernels/gpu/tile_product.cuh"
#include "ft/kernels/skinny_gemm.cuh"
#include "ft/step/block.cuh"

namespace flexq_ft::step {

template <typename T, Format kFormat>
class RowTile;

// Rows as they lie in memory, 768 bytes of each in a stage: boxes of 128 bytes x 16 rows, in which
// the 16-byte piece i of row r is at i ^ r % 8. The order of a sum over k is that of
// skinny_gemm.cuh: lane t of a quad takes piece t of 64 bytes. A warp takes 64 bytes of all rows,
// and those eight times further on where a stage has them. Rows are dealt to lanes so that two
// neighbouring quads of lanes read all banks.
template <typename T, Format kFormat>
class StoredRows {
 public:
  static constexpr bool kHalf = std::is_same_v<T, __half>;
  static constexpr gpu::SkinnyMath kMath =
      kFormat == Format::kW8A8    ? gpu::SkinnyMath::kInt8
      : kFormat == Format::kFloat ? (kHalf ? gpu::SkinnyMath::kFp16 : gpu::SkinnyMath::kBf16)
                                  : (kHalf ? gpu::SkinnyMath::kW8Fp16 : gpu::SkinnyMath::kW8Bf16);
  using Sum = typename gpu::SkinnyTraits<kMath>::Sum;
  static constexpr int kXPieces = gpu::SkinnyTraits<kMath>::kXPieces;
  static constexpr int kElement = kFormat == Format::kFloat ? 2 : 1;  // bytes of a weight
  static constexpr int kPiece = 64;                                   // bytes of a row, for a warp

  // The row of the tile that lanes 4g … 4g + 3 hold; the other one is eight further on.
  static __device__ __forceinline__ int row_of(int g) { return g / 2 + g % 2 * 4; }

  __device__ __forceinline__ StoredRows(const Place& place, int k) {
    const int g = place.lane / 4, t = place.lane % 4;
    const int row = row_of(g);
    const int unit = place.member() % 2 * 4 + t;
    box_ = static_cast<uint32_t>(place.member() / 2 * kStageRows * kBoxBytes + row * kBoxBytes +
                                 (unit ^ row % 8) * 16);
    const Args& args = place.args;
    first_x_ = place.at(args.map.tokens + min(g, args.tokens - 1) * args.map.token_pitch +
                        (place.member() * kPiece + t * 16) * kXPieces);
    row_bytes_ = k * kElement - place.member() * kPiece;
    has_further_ = kFurther + place.member() * kPiece < kRowBytes;
    stages = (k * kElement + kRowBytes - 1) / kRowBytes;
  }

  int stages;  // of 16 rows

  __device__ __forceinline__ Sum at(int i) const { return sum_[0][0][i]; }

  // Sixteen other rows, from this stage on.
  __device__ __forceinline__ void begin(int stage) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum_[0][0][i] = 0;
    x_ = first_x_ + static_cast<uint32_t>(stage * kRowBytes * kXPieces);
    left_ = row_bytes_ - stage * kRowBytes;
  }

  // The team's next stage.
  __device__ __forceinline__ void add(uint32_t stage) { multiply(load(stage)); }

 private:
  static constexpr int kFurther = kTeamWarps * kPiece;  // to the warp's second piece
  static constexpr int kPieces = 2;

  struct Operands {
    uint4 weights[kPieces][1][2];
    uint32_t tokens[kPieces];  // where the tokens' piece is; 0: past the end of a row
    bool any[kPieces];
  };

  __device__ __forceinline__ Operands load(uint32_t stage) {
    Operands out;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      out.any[i] = i == 0 || has_further_;
      if (!out.any[i]) continue;
      // Past the end of a row the weights are zeros, and the operand may be anything.
      const bool inside = left_ > i * kFurther;
      const uint32_t box = stage + box_ + i * (kFurther / kBoxBytes * kStageRows * kBoxBytes);
      out.weights[i][0][0] = flexq_kernels::gpu::load_shared_words(box);
      out.weights[i][0][1] = flexq_kernels::gpu::load_shared_words(box + 8 * kBoxBytes);
      out.tokens[i] = inside ? x_ + i * kFurther * kXPieces : 0;
    }
    left_ -= kTeams * kRowBytes;
    x_ += kTeams * kRowBytes * kXPieces;
    return out;
  }

  __device__ __forceinline__ void multiply(const Operands& x) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (!x.any[i]) continue;
#pragma unroll
      for (int p = 0; p < kXPieces; ++p) {
        uint4 tokens[1] = {make_uint4(0, 0, 0, 0)};
        if (x.tokens[i] != 0) {
          tokens[0] = flexq_kernels::gpu::load_shared_words(x.tokens[i] + p * 16);
        }
        gpu::multiply_chunk<kMath>(sum_, x.weights[i], tokens, p, 0);
      }
    }
  }

  Sum sum_[1][1][4];
  uint32_t box_, first_x_, x_;
  int row_bytes_, left_;  // from the warp's first piece on
  bool has_further_;      // a stage has a second piece for the warp
};

template <typename T>
class RowTile<T, Format::kFloat> : public StoredRows<T, Format::kFloat> {
  using StoredRows<T, Format::kFloat>::StoredRows;
};
template <typename T>
class RowTile<T, Format::kW8A16> : public StoredRows<T, Format::kW8A16> {
  using StoredRows<T, Format::kW8A16>::StoredRows;
};
template <typename T>
class RowTile<T, Format::kW8A8> : public StoredRows<T, Format::kW8A8> {
  using StoredRows<T, Format::kW8A8>::StoredRows;
};

// Eight tiles of 16 x 128 codes in a stage, one for each warp of a team, and their scales behind
// them.
template <typename T>
class RowTile<T, Format::kW6> {
 public:
  using Sum = float;

  static __device__ __forceinline__ int row_of(int g) { return g; }

  __device__ __forceinline__ RowTile(const Place& place, int k) {
    const Args& args = place.args;
    const int g = place.lane / 4, t = place.lane % 4;
    groups_ = (k + kGroup - 1) / kGroup;
    stages = (groups_ + kStageTiles - 1) / kStageTiles;
    groups_ -= place.member();
    words_ = static_cast<uint32_t>(place.member() * flexq_kernels::kTileBytes);
    scales_ = static_cast<uint32_t>(kStageTiles * flexq_kernels::kTileBytes +
                                    place.member() * flexq_kernels::gpu::kTileScaleBytes);
    first_codes_ = place.at(args.map.tokens + min(g, args.tokens - 1) * args.map.token_pitch +
                            place.member() * kGroup + t * 32);
    first_act_ = place.at(
        args.map.scales +
        (place.member() * args.map.scale_tokens + min(2 * t, (args.tokens - 1) / 2 * 2)) * 4);
    act_step_ = static_cast<uint32_t>(kStageTiles * args.map.scale_tokens * 4);
    lane_ = place.lane;
  }

  int stages;

  __device__ __forceinline__ float at(int i) const { return sum_[0][i]; }

  // Sixteen other rows, from this stage on.
  __device__ __forceinline__ void begin(int stage) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum_[0][i] = 0.0f;
    codes_ = first_codes_ + static_cast<uint32_t>(stage * kStageTiles * kGroup);
    act_ = first_act_ + static_cast<uint32_t>(stage) * act_step_;
    left_ = groups_ - stage * kStageTiles;
  }

  // The team's next stage.
  __device__ __forceinline__ void add(uint32_t stage) { multiply(load(stage)); }

 private:
  struct Operands {
    flexq_kernels::gpu::TileWords words;
    flexq_kernels::gpu::TileScales scales;
    flexq_kernels::gpu::TokenFragment<1> tokens;
  };

  __device__ __forceinline__ Operands load(uint32_t stage) {
    namespace fg = flexq_kernels::gpu;
    Operands out;
    out.words = fg::load_tile(stage + words_, lane_);
    out.tokens.codes[0][0] = fg::load_shared_words(codes_);
    out.tokens.codes[0][1] = fg::load_shared_words(codes_ + 16);
    out.tokens.scales[0] = fg::load_shared_pair(act_);
    out.scales = fg::load_tile_scales(stage + scales_, lane_);
    if (left_ <= 0) {  // past the last group: whatever was there counts nothing
      out.tokens.scales[0] = make_float2(0.0f, 0.0f);
      out.scales.low = out.scales.high = __ushort_as_half(0);
    }
    left_ -= kTeams * kStageTiles;
    codes_ += kTeams * kStageTiles * kGroup;
    act_ += kTeams * act_step_;
    return out;
  }

  __device__ __forceinline__ void multiply(const Operands& x) {
    int32_t sums[1][4];
    flexq_kernels::gpu::multiply_tile<1>(sums, x.words, x.tokens);
    flexq_kernels::gpu::add_scaled<1>(sum_, sums, x.scales, x.tokens);
  }

  float sum_[1][4];
  uint32_t words_, scales_, first_codes_, codes_, first_act_, act_, act_step_;
  int groups_, left_, lane_;  // groups: from the warp's first one on
};

}  // namespace flexq_ft::step
