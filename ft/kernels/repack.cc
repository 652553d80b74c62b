#include "ft/kernels/repack.h"

#include "flexq_kernels/pack.h"
#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void check_order(RowOrder order, int64_t n) {
  FLEXQ_FT_CHECK(order.paired == 0 || 2 * order.paired == n, "pairs of ", order.paired, " rows in ",
                 n);
  FLEXQ_FT_CHECK_EQ(order.paired % kBandRows, 0, "rows in pairs");
}

}  // namespace

void invokeRepackRows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                      RowOrder order, Stream stream) {
  FLEXQ_FT_CHECK_EQ(dst.rank(), 2, "repack: dst ", dst.shape());
  FLEXQ_FT_CHECK_EQ(src.rank(), 2, "repack: src ", src.shape());
  const bool floats = is_float(dst.dtype()) && is_float(src.dtype());
  const bool codes = dst.dtype() == src.dtype() && size_of(dst.dtype()) == 1;
  FLEXQ_FT_CHECK(floats || codes, "repack of ", src.dtype(), " into ", dst.dtype());
  FLEXQ_FT_CHECK_EQ(src.device(), dst.device(), "repack: src and dst");
  const int64_t rows = row_major_nk ? src.dim(0) : src.dim(1);
  const int64_t columns = row_major_nk ? src.dim(1) : src.dim(0);
  FLEXQ_FT_CHECK_LE(0, row, "repack: first row");
  FLEXQ_FT_CHECK_LE(row + rows, dst.dim(0), "repack: last row of src ", src.shape());
  FLEXQ_FT_CHECK_LE(0, column, "repack: first column");
  FLEXQ_FT_CHECK_LE(column + columns, dst.dim(1), "repack: last column of src ", src.shape());
  if (row_major_nk) FLEXQ_FT_CHECK_EQ(columns, dst.dim(1), "repack: whole rows");
  check_order(order, dst.dim(0));
  if (src.empty()) return;
  if (dst.device() == Device::kCuda) {
    return gpu::repack_rows(dst, src, row, column, row_major_nk, order, stream);
  }
  cpu::repack_rows(dst, src, row, column, row_major_nk, order);
}

void invokePlaceTiles(Tensor dst, ConstTensor src, int64_t first, int64_t k, RowOrder order,
                      Stream stream) {
  const int64_t n = 2 * order.paired;
  FLEXQ_FT_CHECK_LT(0, n, "tiles to place: rows in pairs");
  check_order(order, n);
  FLEXQ_FT_CHECK_EQ(dst.shape(), (Shape{flexq_kernels::packed_bytes(n, k)}), "tiles of ", n, " x ",
                    k);
  FLEXQ_FT_CHECK_EQ(src.shape(), (Shape{src.dim(0), flexq_kernels::kTileBytes}), "tiles");
  FLEXQ_FT_CHECK_LE(0, first, "first tile");
  FLEXQ_FT_CHECK_LE((first + src.dim(0)) * flexq_kernels::kTileBytes, dst.count(), "last tile");
  for (const DataType dtype : {dst.dtype(), src.dtype()}) {
    FLEXQ_FT_CHECK_EQ(dtype, DataType::kUint8, "tiles");
  }
  FLEXQ_FT_CHECK_EQ(src.device(), dst.device(), "tiles");
  if (src.empty()) return;
  if (dst.device() == Device::kCuda) return gpu::place_tiles(dst, src, first, k, order, stream);
  cpu::place_tiles(dst, src, first, k, order);
}

void invokeTileScales(Tensor dst, ConstTensor src, int64_t k, Stream stream) {
  FLEXQ_FT_CHECK_EQ(src.shape(), (Shape{flexq_kernels::group_count(k), src.dim(1)}), "scales");
  FLEXQ_FT_CHECK_EQ(dst.shape(), (Shape{flexq_kernels::tiled_scale_count(src.dim(1), k)}),
                    "tiled scales of ", src.shape());
  for (const DataType dtype : {dst.dtype(), src.dtype()}) {
    FLEXQ_FT_CHECK_EQ(dtype, DataType::kFp16, "scales of a six-bit weight");
  }
  FLEXQ_FT_CHECK_EQ(src.device(), dst.device(), "scales");
  if (src.empty()) return;
  if (dst.device() == Device::kCuda) return gpu::tile_scales(dst, src, k, stream);
  cpu::tile_scales(dst, src, k);
}

}  // namespace flexq_ft
