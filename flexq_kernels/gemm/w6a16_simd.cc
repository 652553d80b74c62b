// W6A16, weight-only: codes become floats in the first-level cache, fp32 products with the
// activations inside a group, the weight's scale once per group. An output is the same whatever m
// is: even and odd k of a group run in two chains, which are then added; groups in order.
#include "flexq_kernels/gemm/gemm_cpu.h"
#include "flexq_kernels/gemm/row_tile_simd.h"

namespace flexq_kernels::FLEXQ_ISA {

namespace {

constexpr int kBlock = kVectorRegisters >= 32 ? 8 : 3;  // tokens

// values [128 k][16 rows] <- panel.
FLEXQ_SIMD void dequantize_panel(float* values, const uint8_t* panel) {
  for (int q = 0; q < kQuads; ++q) {
    for (int b = 0; b < 4; ++b) {
      for (int r = 0; r < kTileRows; ++r) {
        uint32_t quad;
        std::memcpy(&quad, panel + 64 * q + 4 * r, sizeof(quad));
        values[64 * q + 16 * b + r] =
            static_cast<float>(static_cast<int32_t>((quad >> (8 * b)) & 0x3f) - 32);
      }
    }
  }
}

template <int kTokens>
void multiply_block(float (*sums)[kTileRows], const float* values, const float* x, int64_t stride,
                    F32x16 scale) {
  F32x16 even[kTokens], odd[kTokens];
  for (int i = 0; i < kTokens; ++i) even[i] = odd[i] = zero_f32();
  for (int k = 0; k < kGroupSize; k += 2) {
    const F32x16 w0 = load(values + 16 * k), w1 = load(values + 16 * k + 16);
    for (int i = 0; i < kTokens; ++i) {
      even[i] = fma(w0, broadcast(x[i * stride + k]), even[i]);
      odd[i] = fma(w1, broadcast(x[i * stride + k + 1]), odd[i]);
    }
  }
  for (int i = 0; i < kTokens; ++i) {
    store(sums[i], fma(scale, add(even[i], odd[i]), load(sums[i])));
  }
}

using MultiplyBlock = void (*)(float (*)[kTileRows], const float*, const float*, int64_t, F32x16);

// Indexed by the number of tokens in a block.
constexpr MultiplyBlock kMultiplyBlock[9] = {
    nullptr,           multiply_block<1>, multiply_block<2>, multiply_block<3>, multiply_block<4>,
    multiply_block<5>, multiply_block<6>, multiply_block<7>, multiply_block<8>};

}  // namespace

void w6a16_row_tiles(const W6A16Task& task, int64_t begin, int64_t end) {
  alignas(64) float sums[kTokenChunk][kTileRows];
  alignas(64) uint8_t panel[kPanelBytes];
  alignas(64) float values[kGroupSize * kTileRows];
  const int64_t stride = task.groups * kGroupSize;
  for (int64_t token = 0; token < task.m; token += kTokenChunk) {
    const int64_t tokens = at_most(task.m - token, kTokenChunk);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kTileRows;
      std::memset(sums, 0, static_cast<size_t>(tokens) * sizeof(sums[0]));
      for (int64_t g = 0; g < task.groups; ++g) {
        unpack_panel(panel, task.weight_codes + (tile * task.groups + g) * kTileBytes);
        dequantize_panel(values, panel);
        const F32x16 scale = load_scales(task.weight_scales + g * task.n + row, task.n - row);
        for (int64_t i = 0; i < tokens; i += kBlock) {
          const float* x = task.x + (token + i) * stride + g * kGroupSize;
          kMultiplyBlock[at_most(tokens - i, kBlock)](sums + i, values, x, stride, scale);
        }
      }
      store_row_tile(task.y + token * task.n, sums, task.bias, tokens, row, task.n);
    }
  }
}

}  // namespace flexq_kernels::FLEXQ_ISA
