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

template <typename T, Format kFormat, int kTokens>
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

  __device__ __forceinline__ StoredRows(const Place& place, int k, RingReader& ring, int op)
      : ring_(ring), op_(op) {
    const int g = place.lane / 4, t = place.lane % 4;
    const int row = row_of(g);
    const int unit = place.member() % 2 * 4 + t;
    box_ = static_cast<uint32_t>(place.member() / 2 * kStageRows * kBoxBytes + row * kBoxBytes +
                                 (unit ^ row % 8) * 16);
    const Args& args = place.args;
    first_x_ = place.at(args.map.tokens + min(g, args.tokens - 1) * args.map.token_pitch +
                        (place.member() * kPiece + t * 16) * kXPieces);
    member_ = place.member() * kPiece;
    row_bytes_ = k * kElement - member_;
    stages_ = (k * kElement + kRowBytes - 1) / kRowBytes;
  }

  // Of 16 rows.
  __device__ __forceinline__ int stages() const { return stages_; }

  __device__ __forceinline__ Sum at(int i) const { return sum_[0][0][i]; }

  // Sixteen other rows, from this stage on.
  __device__ __forceinline__ void begin(int stage) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum_[0][0][i] = 0;
    x_ = first_x_ + static_cast<uint32_t>(stage * kRowBytes * kXPieces);
    left_ = row_bytes_ - stage * kRowBytes;
  }

  // The team's stages of the row, from the one that it began with on.
  __device__ __forceinline__ void add() {
#pragma unroll 1
    while (left_ > -member_) {
      multiply(load(ring_.wait(op_)));
      ring_.release();
    }
  }

  // Behind the last rows of an op.
  __device__ __forceinline__ void end() const {}

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
      out.any[i] = i == 0 || member_ < kRowBytes - kFurther;  // the stage has such a piece
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

  RingReader& ring_;
  int op_;
  Sum sum_[1][1][4];
  uint32_t box_, first_x_, x_;
  int row_bytes_, left_;  // from the warp's first piece on,
  int member_;            // which is so far into a stage's rows
  int stages_;
};

template <typename T, int kTokens>
class RowTile<T, Format::kFloat, kTokens> : public StoredRows<T, Format::kFloat> {
  using StoredRows<T, Format::kFloat>::StoredRows;
};
template <typename T, int kTokens>
class RowTile<T, Format::kW8A16, kTokens> : public StoredRows<T, Format::kW8A16> {
  using StoredRows<T, Format::kW8A16>::StoredRows;
};
template <typename T, int kTokens>
class RowTile<T, Format::kW8A8, kTokens> : public StoredRows<T, Format::kW8A8> {
  using StoredRows<T, Format::kW8A8>::StoredRows;
};

// Eight tiles of 16 x 128 codes in a stage, one for each warp of a team, and their scales behind
// them; two stages at a time.
template <typename T, int kTokens>
class RowTile<T, Format::kW6, kTokens> {
 public:
  using Sum = float;

  static __device__ __forceinline__ int row_of(int g) { return g; }

  __device__ __forceinline__ RowTile(const Place& place, int k, RingReader& ring, int op)
      : pairs_(ring, op) {
    const Args& args = place.args;
    const int g = place.lane / 4, t = place.lane % 4;
    member_ = place.member();
    groups_ = (k + kGroup - 1) / kGroup;
    words_ = pairs_.origin() +
             static_cast<uint32_t>(member_ * flexq_kernels::kTileBytes + place.lane * 16);
    scales_ = pairs_.origin() +
              static_cast<uint32_t>(kStageTiles * flexq_kernels::kTileBytes +
                                    member_ * flexq_kernels::gpu::kTileScaleBytes + g * 2);
    keep(words_);
    keep(scales_);
    const int end = groups_ + member_;
    end_codes_ = place.at(args.map.tokens + min(g, args.tokens - 1) * args.map.token_pitch +
                          end * kGroup + t * 32);
    end_acts_ = place.at(args.map.scales +
                         (end * scale_tokens() + min(2 * t, (args.tokens - 1) / 2 * 2)) * 4);
  }

  // Of 16 rows.
  __device__ __forceinline__ int stages() const {
    return (groups_ + kStageTiles - 1) / kStageTiles;
  }

  // Of one token all columns are alike, and one is kept.
  __device__ __forceinline__ float at(int i) const { return sum_[i / 2][i % kColumns]; }

  // Sixteen other rows, from this stage on.
  __device__ __forceinline__ void begin(int stage) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum_[0][c] = sum_[1][c] = 0.0f;
    left_ = groups_ - stage * kStageTiles;
  }

  // The team's stages of the row, from the one that it began with on.
  __device__ __forceinline__ void add() {
#pragma unroll 1
    while (left_ > kTeams * kStageTiles) add_stages<2>();
    if (left_ > 0) add_stages<1>();
  }

  // Behind the last rows of an op.
  __device__ __forceinline__ void end() { pairs_.end(); }

 private:
  static constexpr int kColumns = kTokens == 1 ? 1 : 2;

  __device__ __forceinline__ int scale_tokens() const {
    return kTokens == 1 ? 2 : pairs_.args().map.scale_tokens;
  }

  struct Weights {
    flexq_kernels::gpu::TileWords words;
    flexq_kernels::gpu::TileScales scales;
  };

  // Only what lies in the ring is loaded before its stages are free again.
  template <int kCount>
  __device__ __forceinline__ void add_stages() {
    Weights weights[kCount];
    pairs_.template wait<kCount>();
    load(weights[0], pairs_.first());
    if constexpr (kCount == 2) load(weights[1], pairs_.second());
    pairs_.template release<kCount>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      multiply(weights[i], left_ - i * kTeams * kStageTiles);
    }
    left_ -= kCount * kTeams * kStageTiles;
  }

  __device__ __forceinline__ void load(Weights& out, uint32_t stage) const {
    out.words = flexq_kernels::gpu::load_tile(stage + words_, 0);
    out.scales = flexq_kernels::gpu::load_tile_scales(stage + scales_, 0);
  }

  // left: as left_. Past the last group something was loaded, and counts nothing. A quarter, for
  // the fourfold codes (int6.cuh), is in the tokens' scales (token_input.cuh).
  __device__ __forceinline__ void multiply(const Weights& w, int left) {
    namespace fg = flexq_kernels::gpu;
    const uint32_t codes = end_codes_ - static_cast<uint32_t>(left * kGroup);
    const uint32_t act = end_acts_ - static_cast<uint32_t>(left * scale_tokens() * 4);
    const fg::TokenFragment<1> x{
        {{fg::load_shared_words(codes), fg::load_shared_words(codes + 16)}}, {}};
    const float2 of_tokens =
        kColumns == 1 ? make_float2(load_shared_float(act), 0.0f) : fg::load_shared_pair(act);
    int32_t sums[1][4];
    fg::multiply_tile<1>(sums, w.words, x);
    const float scales[2] = {__half2float(w.scales.low), __half2float(w.scales.high)};
    const float acts[2] = {of_tokens.x, of_tokens.y};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float scale = left > member_ ? __fmul_rn(scales[r], acts[c]) : 0.0f;
        const float sum = __fadd_rn(__int_as_float(sums[0][2 * r + c]), -fg::kSumBiasValue);
        sum_[r][c] = __fmaf_rn(sum, scale, sum_[r][c]);
      }
    }
  }

  StagePairs pairs_;
  float sum_[2][kColumns];   // of rows g and g + 8, of tokens 2t and 2t + 1
  uint32_t words_, scales_;  // of the warp in a stage, by its barrier (StagePairs)
  uint32_t end_codes_,
      end_acts_;                // of the tokens, as far behind the warp's first group as there are
  int groups_, left_, member_;  // left: from the stage on that is next
};

}  // namespace flexq_ft::step
