// Weights of a file into the panels of gemm.h.
#include <algorithm>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/gemm.h"
#include "ft/kernels/gemm_simd.h"

namespace flexq_ft {

namespace {

constexpr int64_t kPanelRows = 16;

int64_t panel_count(int64_t n) { return (n + kPanelRows - 1) / kPanelRows; }

// Calls copy(p, first, last) for every panel that rows [row, row + rows) touch, with its lanes.
template <typename Copy>
void for_panels(int64_t row, int64_t rows, int64_t k, Copy&& copy) {
  const int64_t first_panel = row / kPanelRows;
  const int64_t panels = panel_count(row + rows) - first_panel;
  flexq_kernels::parallel_ranges(panels, panels * k * kPanelRows, [&](int64_t begin, int64_t end) {
    for (int64_t p = first_panel + begin; p < first_panel + end; ++p) {
      copy(p, std::max<int64_t>(row - p * kPanelRows, 0),
           std::min(row + rows - p * kPanelRows, kPanelRows));
    }
  });
}

void check_rows(Tensor panel, ConstTensor w, int64_t row, int64_t rows, int64_t k) {
  FLEXQ_FT_CHECK_EQ(panel.rank(), 2, "repack: panel ", panel.shape());
  FLEXQ_FT_CHECK_EQ(w.rank(), 2, "repack: w ", w.shape());
  FLEXQ_FT_CHECK_EQ(k, panel.dim(1), "repack: k of w ", w.shape(), " and panel ", panel.shape());
  FLEXQ_FT_CHECK_LE(0, row, "repack: first row");
  FLEXQ_FT_CHECK_LE(row + rows, panel.dim(0), "repack: last row of w ", w.shape(), " at ", row);
}

void repack_int8(Tensor panel, ConstTensor w, int64_t row, bool row_major_nk) {
  const int64_t k = panel.dim(1);
  const int64_t rows = row_major_nk ? w.dim(0) : w.dim(1);
  const int64_t row_stride = row_major_nk ? k : 1;
  const int64_t k_stride = row_major_nk ? 1 : rows;
  for_panels(row, rows, k, [&](int64_t p, int64_t first, int64_t last) {
    int8_t* out = static_cast<int8_t*>(panel.raw()) + p * k * kPanelRows;
    for (int64_t lane = first; lane < last; ++lane) {
      const int8_t* in =
          static_cast<const int8_t*>(w.raw()) + (p * kPanelRows + lane - row) * row_stride;
      for (int64_t i = 0; i < k; ++i) out[i * kPanelRows + lane] = in[i * k_stride];
    }
  });
}

}  // namespace

size_t panel_bytes(int64_t n, int64_t k, DataType dtype) {
  return static_cast<size_t>(panel_count(n) * kPanelRows * k) * size_of(dtype);
}

size_t panel_pairs_bytes(int64_t n, int64_t k) {
  return static_cast<size_t>(panel_count(n) * kPanelRows * ((k + 1) / 2) * 2);
}

void repack_panel(Tensor panel, ConstTensor w, int64_t row, bool row_major_nk) {
  const int64_t rows = row_major_nk ? w.dim(0) : w.dim(1);
  const int64_t k = row_major_nk ? w.dim(1) : w.dim(0);
  check_rows(panel, w, row, rows, k);
  if (panel.dtype() == DataType::kInt8) {
    FLEXQ_FT_CHECK_EQ(w.dtype(), DataType::kInt8, "repack into an int8 panel");
    if (!w.empty()) repack_int8(panel, w, row, row_major_nk);
    return;
  }
  FLEXQ_FT_CHECK(is_float(panel.dtype()), "repack into a panel of ", panel.dtype());
  FLEXQ_FT_CHECK(is_float(w.dtype()), "repack of ", w.dtype(), " into ", panel.dtype());
  if (w.empty()) return;
  const RepackTask task{panel.raw(), panel.dtype(), w.raw(), w.dtype(), row, rows, k, row_major_nk};
  const int64_t first = row / kPanelRows;
  const int64_t panels = panel_count(row + rows) - first;
  flexq_kernels::parallel_ranges(panels, w.count(), [&](int64_t begin, int64_t end) {
    FLEXQ_ISA_PICK(repack_float_panels)(task, first + begin, first + end);
  });
}

void repack_panel_pairs(Tensor panel, ConstTensor w, int64_t row) {
  check_rows(panel, w, row, w.dim(0), w.dim(1));
  FLEXQ_FT_CHECK_EQ(panel.dtype(), DataType::kInt8, "repack into panel pairs");
  FLEXQ_FT_CHECK_EQ(w.dtype(), DataType::kInt8, "repack into panel pairs");
  if (w.empty()) return;
  const int64_t k = w.dim(1);
  const int64_t pairs = (k + 1) / 2;
  for_panels(row, w.dim(0), k, [&](int64_t p, int64_t first, int64_t last) {
    int8_t* out = static_cast<int8_t*>(panel.raw()) + p * pairs * 2 * kPanelRows;
    for (int64_t lane = first; lane < last; ++lane) {
      const int8_t* in = static_cast<const int8_t*>(w.raw()) + (p * kPanelRows + lane - row) * k;
      for (int64_t i = 0; i < k; ++i) out[(i / 2 * kPanelRows + lane) * 2 + i % 2] = in[i];
      if (k % 2 != 0) out[(k / 2 * kPanelRows + lane) * 2 + 1] = 0;
    }
  });
}

}  // namespace flexq_ft
