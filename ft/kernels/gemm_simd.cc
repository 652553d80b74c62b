// The products as tiles of rows x panels, compiled once per ISA.

#if defined(__AVX2__) && defined(__GNUC__) && !defined(__clang__)
// GCC's partial redundancy elimination moves all products of a tile before its sums, which spill:
// W8A8 runs at 73 instead of 92 Gmac/s on one AVX-512 core, at 49 instead of 78 with AVX2.
#pragma GCC optimize("no-tree-pre")
#endif

#include "ft/kernels/gemm_simd.h"

#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

// A quarter of the registers holds operands, the rest accumulators.
constexpr int kAccumulators = kVectorRegisters - kVectorRegisters / 4;
// Two panels per tile where there are registers enough, so that each x is used twice.
constexpr int kRowBlock = kAccumulators >= 12 ? kAccumulators / 2 : kAccumulators;

// Few rows take more panels at once: the accumulators must hide the latency of the fma.
constexpr int panels_for(int rows) {
  const int fit = kAccumulators / rows;
  return fit > 8 ? 8 : fit;
}

template <typename T>
struct FloatOp {
  using W = T;
  using X = float;
  using Acc = F32x16;
  static constexpr int kDepth = 1;  // k per step
  FLEXQ_SIMD Acc zero() { return zero_f32(); }
  FLEXQ_SIMD F32x16 weight(const W* w) { return load(w); }
  FLEXQ_SIMD F32x16 splat(const X* x) { return broadcast(*x); }
  FLEXQ_SIMD Acc mac(Acc acc, F32x16 w, F32x16 x) { return fma(w, x, acc); }
  FLEXQ_SIMD F32x16 value(Acc acc) { return acc; }
};

struct Int8Op {
  using W = int8_t;
  using X = int16_t;
  using Acc = I32x16;
  static constexpr int kDepth = 2;
  FLEXQ_SIMD Acc zero() { return zero_i32(); }
  FLEXQ_SIMD I16x32 weight(const W* w) { return load_i8_as_i16(w); }
  FLEXQ_SIMD I16x32 splat(const X* x) { return broadcast_pair(x); }
  FLEXQ_SIMD Acc mac(Acc acc, I16x32 w, I16x32 x) { return add(acc, madd(w, x)); }
  FLEXQ_SIMD F32x16 value(Acc acc) { return to_f32(acc); }
};

// Scales, adds the bias and stores a tile's sums, [rows][panels][16].
[[gnu::noinline]] void finish(const GemmTask& a, const float* sums, int rows, int panels,
                              int64_t row, int64_t panel, int64_t end) {
  for (int p = 0; p < panels && panel + p < end; ++p) {
    const int64_t column = (panel + p) * kLanes;
    const int64_t n = a.n - column;
    const F32x16 w_scale = a.w_scale != nullptr ? load_n(a.w_scale + column, n) : broadcast(1.0f);
    const F32x16 bias = a.bias != nullptr ? load_n(a.bias + column, n) : zero_f32();
    for (int r = 0; r < rows; ++r) {
      const float x_scale = a.x_scale != nullptr ? a.x_scale[row + r] : 1.0f;
      const F32x16 v = load(sums + (r * panels + p) * kLanes);
      const F32x16 y = add(mul(mul(w_scale, broadcast(x_scale)), v), bias);
      store_n(a.y + (row + r) * a.n + column, y, n);
    }
  }
}

// R rows from `row` on, whose packed x starts at x, times the panels from `panel` on.
template <typename Op, int R>
void tile(const GemmTask& a, const typename Op::X* x, int64_t row, int64_t panel, int64_t end) {
  constexpr int P = panels_for(R);
  const int64_t steps = (a.k + Op::kDepth - 1) / Op::kDepth;
  const int64_t panel_size = steps * Op::kDepth * kLanes;
  const typename Op::W* w[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {  // past the end: the last panel again, its result dropped
    const int64_t at = panel + p < end ? panel + p : end - 1;
    w[p] = static_cast<const typename Op::W*>(a.w) + at * panel_size;
  }
  typename Op::Acc acc[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[r][p] = Op::zero();
  }
  for (int64_t s = 0; s < steps; ++s) {
    decltype(Op::weight(w[0])) wv[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) wv[p] = Op::weight(w[p] + s * Op::kDepth * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto xv = Op::splat(x + (s * R + r) * Op::kDepth);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) acc[r][p] = Op::mac(acc[r][p], wv[p], xv);
    }
  }
  float sums[R * P * kLanes];  // left to finish(): an indexed acc would not stay in registers
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(sums + (r * P + p) * kLanes, Op::value(acc[r][p]));
  }
  finish(a, sums, R, P, row, panel, end);
}

template <typename Op, int R>
void tail_rows(const GemmTask& a, const typename Op::X* x, int64_t row, int64_t begin,
               int64_t end) {
  if constexpr (R > 0) {
    if (a.m - row != R) return tail_rows<Op, R - 1>(a, x, row, begin, end);
    for (int64_t p = begin; p < end; p += panels_for(R)) tile<Op, R>(a, x, row, p, end);
  }
}

template <typename Op>
void panels(const GemmTask& a, int64_t begin, int64_t end) {
  const auto* x = static_cast<const typename Op::X*>(a.x);
  const int64_t row_size = (a.k + Op::kDepth - 1) / Op::kDepth * Op::kDepth;
  const int64_t full = a.m / kRowBlock * kRowBlock;
  for (int64_t p = begin; p < end; p += panels_for(kRowBlock)) {
    for (int64_t row = 0; row < full; row += kRowBlock) {
      tile<Op, kRowBlock>(a, x + row * row_size, row, p, end);
    }
  }
  tail_rows<Op, kRowBlock - 1>(a, x + full * row_size, full, begin, end);
}

template <typename T>
void pack_float(float* packed, const void* x_data, int64_t m, int64_t k, int64_t begin,
                int64_t end) {
  const T* x = static_cast<const T*>(x_data);
  for (int64_t row = begin; row < end; row += kRowBlock) {
    const int64_t rows = m - row < kRowBlock ? m - row : kRowBlock;
    for (int64_t i = 0; i < k; i += kLanes) {
      const int64_t n = k - i < kLanes ? k - i : kLanes;
      float* out = packed + row * k + i * rows;
      for (int64_t r = 0; r < rows; ++r) {
        float values[kLanes];
        store(values, load_n(x + (row + r) * k + i, n));
        for (int64_t j = 0; j < n; ++j) out[j * rows + r] = values[j];
      }
    }
  }
}

}  // namespace

int64_t gemm_row_block() { return kRowBlock; }

void gemm_pack_float(float* packed, const void* x, DataType dtype, int64_t m, int64_t k,
                     int64_t begin, int64_t end) {
  FLEXQ_FT_PICK_FLOAT(dtype, pack_float, packed, x, m, k, begin, end)
}

void gemm_pack_int8(int16_t* packed, const int8_t* x, int64_t m, int64_t k, int64_t begin,
                    int64_t end) {
  const int64_t pairs = (k + 1) / 2;
  for (int64_t row = begin; row < end; row += kRowBlock) {
    const int64_t rows = m - row < kRowBlock ? m - row : kRowBlock;
    int16_t* out = packed + row * pairs * 2;
    for (int64_t r = 0; r < rows; ++r) {
      const int8_t* in = x + (row + r) * k;
      for (int64_t i = 0; i < pairs; ++i) {
        out[(i * rows + r) * 2] = in[2 * i];
        out[(i * rows + r) * 2 + 1] = 2 * i + 1 < k ? in[2 * i + 1] : int8_t{0};
      }
    }
  }
}

void gemm_float_panels(const GemmTask& a, int64_t begin, int64_t end) {
  if (a.storage == DataType::kInt8) return panels<FloatOp<int8_t>>(a, begin, end);
  if (a.storage == DataType::kFp16) return panels<FloatOp<Half>>(a, begin, end);
  if (a.storage == DataType::kBf16) return panels<FloatOp<BFloat16>>(a, begin, end);
  panels<FloatOp<float>>(a, begin, end);
}

void gemm_int8_panels(const GemmTask& a, int64_t begin, int64_t end) {
  panels<Int8Op>(a, begin, end);
}

}  // namespace flexq_ft::FLEXQ_ISA
