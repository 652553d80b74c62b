// W6Ax on packed weights: a 16 x 128 tile is unpacked to one byte per weight in the first-level
// cache and multiplied with as many tokens as there are. Exact int32 inside a group; the groups
// are added in order, in fp32, so a row of y depends on nothing but its own operands.
#include "flexq_kernels/gemm/gemm_cpu.h"
#include "flexq_kernels/gemm/row_tile_simd.h"

namespace flexq_kernels::FLEXQ_ISA {

namespace {

constexpr int kBlock = kVectorRegisters >= 32 ? 8 : 4;  // tokens
constexpr int kGroupChunk = 4;                          // panels unpacked at a time

// acc[i] <- offset of token i + sum over the group of (w + 32) * a. No step saturates: a sum of
// four products is at most 4 * 63 * 128 = 32256 < 2^15.
template <int kTokens>
FLEXQ_SIMD void sum_group(I32x16 (&acc)[kTokens], const uint8_t* panel, const int8_t* codes,
                          int64_t code_stride, const int32_t* offsets, int64_t groups) {
  const I16x32 one = one_i16();
  for (int i = 0; i < kTokens; ++i) acc[i] = broadcast_i32(offsets[i * groups]);
  for (int q = 0; q < kQuads; q += 2) {
    const I8x64 w0 = load_i8x64(panel + 64 * q), w1 = load_i8x64(panel + 64 * q + 64);
    const int8_t* a = codes + 4 * q;
    for (int i = 0; i < kTokens; ++i, a += code_stride) {
      const I16x32 quads =
          add(dot_pairs(w0, broadcast_quad(a)), dot_pairs(w1, broadcast_quad(a + 4)));
      acc[i] = add(acc[i], madd(quads, one));
    }
  }
}

// Groups first … first + count - 1 of one row tile, for kTokens tokens from `token`.
template <int kTokens>
void multiply_block(float (*sums)[kTileRows], const uint8_t* panels, const float (*scales)[16],
                    const W6AxTask& task, int64_t token, int64_t first, int64_t count) {
  for (int64_t g = 0; g < count; ++g) {
    I32x16 acc[kTokens];
    const int64_t at = token * task.groups + first + g;
    sum_group<kTokens>(acc, panels + g * kPanelBytes, task.codes + at * kGroupSize,
                       task.groups * kGroupSize, task.offsets + at, task.groups);
    const F32x16 weight_scale = load(scales[g]);
    for (int i = 0; i < kTokens; ++i) {
      const F32x16 scale = mul(weight_scale, broadcast(task.act_scales[at + i * task.groups]));
      store(sums[i], add(load(sums[i]), mul(scale, to_f32(acc[i]))));
    }
  }
}

template <int kTokens>
void store_sums_block(const uint8_t* panel, const W6AxTask& task, int64_t token, int64_t row,
                      int64_t g) {
  I32x16 acc[kTokens];
  const int64_t at = token * task.groups + g;
  sum_group<kTokens>(acc, panel, task.codes + at * kGroupSize, task.groups * kGroupSize,
                     task.offsets + at, task.groups);
  const int64_t rows = at_most(task.n - row, kTileRows);
  for (int i = 0; i < kTokens; ++i) {
    int32_t lanes[kLanes];
    store(lanes, acc[i]);
    int32_t* out = task.sums + ((token + i) * task.n + row) * task.groups + g;
    for (int64_t r = 0; r < rows; ++r) out[r * task.groups] = lanes[r];
  }
}

using MultiplyBlock = void (*)(float (*)[kTileRows], const uint8_t*, const float (*)[16],
                               const W6AxTask&, int64_t, int64_t, int64_t);
using StoreSumsBlock = void (*)(const uint8_t*, const W6AxTask&, int64_t, int64_t, int64_t);

// Indexed by the number of tokens in a block.
constexpr MultiplyBlock kMultiplyBlock[9] = {
    nullptr,           multiply_block<1>, multiply_block<2>, multiply_block<3>, multiply_block<4>,
    multiply_block<5>, multiply_block<6>, multiply_block<7>, multiply_block<8>};
constexpr StoreSumsBlock kStoreSumsBlock[9] = {nullptr,
                                               store_sums_block<1>,
                                               store_sums_block<2>,
                                               store_sums_block<3>,
                                               store_sums_block<4>,
                                               store_sums_block<5>,
                                               store_sums_block<6>,
                                               store_sums_block<7>,
                                               store_sums_block<8>};

void multiply_row_tile(float (*sums)[kTileRows], const W6AxTask& task, int64_t tile, int64_t token,
                       int64_t tokens) {
  alignas(64) uint8_t panels[kGroupChunk * kPanelBytes];
  alignas(64) float scales[kGroupChunk][kTileRows];
  std::memset(sums, 0, static_cast<size_t>(tokens) * sizeof(sums[0]));
  const int64_t row = tile * kTileRows;
  for (int64_t first = 0; first < task.groups; first += kGroupChunk) {
    const int64_t count = at_most(task.groups - first, kGroupChunk);
    for (int64_t g = 0; g < count; ++g) {
      unpack_panel(panels + g * kPanelBytes,
                   task.weight_codes + (tile * task.groups + first + g) * kTileBytes);
      store(scales[g], load_scales(task.weight_scales + (first + g) * task.n + row, task.n - row));
    }
    for (int64_t i = 0; i < tokens; i += kBlock) {
      kMultiplyBlock[at_most(tokens - i, kBlock)](sums + i, panels, scales, task, token + i, first,
                                                  count);
    }
  }
}

}  // namespace

void w6ax_offsets(int32_t* offsets, const int8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i, codes += kGroupSize) {
    int32_t sum = 0;
    for (int j = 0; j < kGroupSize; ++j) sum += codes[j];
    offsets[i] = -32 * sum;
  }
}

void w6ax_row_tiles(const W6AxTask& task, int64_t begin, int64_t end) {
  alignas(64) float sums[kTokenChunk][kTileRows];
  for (int64_t token = 0; token < task.m; token += kTokenChunk) {
    const int64_t tokens = at_most(task.m - token, kTokenChunk);
    for (int64_t tile = begin; tile < end; ++tile) {
      multiply_row_tile(sums, task, tile, token, tokens);
      store_row_tile(task.y + token * task.n, sums, task.bias, tokens, tile * kTileRows, task.n);
    }
  }
}

void w6ax_sums_row_tiles(const W6AxTask& task, int64_t begin, int64_t end) {
  alignas(64) uint8_t panel[kPanelBytes];
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int64_t g = 0; g < task.groups; ++g) {
      unpack_panel(panel, task.weight_codes + (tile * task.groups + g) * kTileBytes);
      for (int64_t i = 0; i < task.m; i += kBlock) {
        kStoreSumsBlock[at_most(task.m - i, kBlock)](panel, task, i, tile * kTileRows, g);
      }
    }
  }
}

}  // namespace flexq_kernels::FLEXQ_ISA
