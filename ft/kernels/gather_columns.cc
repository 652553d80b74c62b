#include "ft/kernels/gather_columns.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void check_matrix(ConstTensor x, int rank, const char* op) {
  FLEXQ_FT_CHECK_EQ(x.rank(), rank, op, " ", x.shape());
  FLEXQ_FT_CHECK_EQ(x.dtype(), DataType::kFp32, op, " ", x.shape());
}

}  // namespace

void invokePadColumns(Tensor out, ConstTensor x, Stream stream) {
  check_matrix(out, 2, "pad_columns: out");
  check_matrix(x, 2, "pad_columns: x");
  FLEXQ_FT_CHECK_EQ(x.dim(0), out.dim(0), "pad_columns: rows");
  FLEXQ_FT_CHECK_LE(x.dim(1), out.dim(1), "pad_columns: columns");
  if (out.empty()) return;
  if (out.device() == Device::kCuda) return gpu::pad_columns(out, x, stream);
  cpu::pad_columns(out, x);
}

void invokeGatherColumns(Tensor out, ConstTensor parts, Stream stream) {
  check_matrix(out, 2, "gather_columns: out");
  check_matrix(parts, 3, "gather_columns: parts");
  FLEXQ_FT_CHECK_EQ(parts.dim(1), out.dim(0), "gather_columns: rows");
  FLEXQ_FT_CHECK_LE(out.dim(1), parts.dim(0) * parts.dim(2), "gather_columns: columns");
  FLEXQ_FT_CHECK_EQ(parts.device(), out.device(), "gather_columns");
  if (out.empty()) return;
  if (out.device() == Device::kCuda) return gpu::gather_columns(out, parts, stream);
  cpu::gather_columns(out, parts);
}

}  // namespace flexq_ft
