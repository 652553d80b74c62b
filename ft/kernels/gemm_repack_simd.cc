// Float weights into panels, compiled once per ISA: conversion and a 16 x 16 transpose.
#include "ft/kernels/gemm_simd.h"
#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

// Lanes [first, last) of one step of a panel.
template <typename T>
FLEXQ_SIMD void store_lanes(T* out, F32x16 v, int64_t first, int64_t last) {
  if (first == 0) return store_n(out, v, last);
  T lanes[kLanes];
  store(lanes, v);
  for (int64_t i = first; i < last; ++i) out[i] = lanes[i];
}

// w [rows, k]: lane i of the panel is row `lane_row + i`, for i in [first, last).
template <typename Out, typename In>
void panel_from_rows(Out* panel, const In* w, int64_t k, int64_t lane_row, int64_t first,
                     int64_t last) {
  for (int64_t i = 0; i < k; i += kLanes) {
    const int64_t n = k - i < kLanes ? k - i : kLanes;
    F32x16 block[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const bool mine = r >= first && r < last;
      block[r] = mine ? load_n(w + (lane_row + r) * k + i, n) : zero_f32();
    }
    transpose(block);
    for (int64_t j = 0; j < n; ++j) {
      store_lanes(panel + (i + j) * kLanes, block[j], first, last);
    }
  }
}

// w [k, rows]: what FasterTransformer stores.
template <typename Out, typename In>
void panel_from_columns(Out* panel, const In* w, int64_t k, int64_t rows, int64_t lane_row,
                        int64_t first, int64_t last) {
  for (int64_t i = 0; i < k; ++i) {
    if (first == 0 && last == kLanes) {
      store(panel + i * kLanes, load(w + i * rows + lane_row));
      continue;
    }
    In lanes[kLanes] = {};
    for (int64_t r = first; r < last; ++r) lanes[r] = w[i * rows + lane_row + r];
    store_lanes(panel + i * kLanes, load(lanes), first, last);
  }
}

template <typename Out, typename In>
void repack(const RepackTask& a, int64_t begin, int64_t end) {
  const In* w = static_cast<const In*>(a.w);
  for (int64_t p = begin; p < end; ++p) {
    Out* panel = static_cast<Out*>(a.panel) + p * a.k * kLanes;
    const int64_t lane_row = p * kLanes - a.row;  // the row of w in lane 0; may be negative
    const int64_t first = lane_row < 0 ? -lane_row : 0;
    const int64_t last = a.rows - lane_row < kLanes ? a.rows - lane_row : kLanes;
    if (a.row_major_nk) {
      panel_from_rows(panel, w, a.k, lane_row, first, last);
    } else {
      panel_from_columns(panel, w, a.k, a.rows, lane_row, first, last);
    }
  }
}

template <typename Out>
void repack_to(const RepackTask& a, int64_t begin, int64_t end) {
  if (a.w_dtype == DataType::kFp16) return repack<Out, Half>(a, begin, end);
  if (a.w_dtype == DataType::kBf16) return repack<Out, BFloat16>(a, begin, end);
  repack<Out, float>(a, begin, end);
}

}  // namespace

void repack_float_panels(const RepackTask& a, int64_t begin, int64_t end) {
  FLEXQ_FT_PICK_FLOAT(a.panel_dtype, repack_to, a, begin, end)
}

}  // namespace flexq_ft::FLEXQ_ISA
