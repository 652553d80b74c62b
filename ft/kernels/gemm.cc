#include "ft/kernels/gemm.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void check_product(Tensor y, ConstTensor x, ConstTensor w, ConstTensor bias) {
  FLEXQ_FT_CHECK_EQ(x.rank(), 2, "gemm: x ", x.shape());
  FLEXQ_FT_CHECK_EQ(w.rank(), 2, "gemm: w ", w.shape());
  FLEXQ_FT_CHECK_EQ(x.dim(1), w.dim(1), "gemm: k of x ", x.shape(), " and w ", w.shape());
  FLEXQ_FT_CHECK_EQ(y.shape(), (Shape{x.dim(0), w.dim(0)}), "gemm: y of x ", x.shape(), " and w ",
                    w.shape());
  FLEXQ_FT_CHECK_EQ(y.dtype(), DataType::kFp32, "gemm: y");
  if (!bias.defined()) return;
  FLEXQ_FT_CHECK_EQ(bias.shape(), (Shape{w.dim(0)}), "gemm: bias of w ", w.shape());
  FLEXQ_FT_CHECK_EQ(bias.dtype(), DataType::kFp32, "gemm: bias");
}

void check_scale(ConstTensor scale, int64_t count, const char* what) {
  FLEXQ_FT_CHECK_EQ(scale.shape(), (Shape{count}), "gemm: ", what);
  FLEXQ_FT_CHECK_EQ(scale.dtype(), DataType::kFp32, "gemm: ", what);
}

}  // namespace

void invokeGemmFloat(Tensor y, ConstTensor x, ConstTensor w, ConstTensor bias, Stream) {
  check_product(y, x, w, bias);
  FLEXQ_FT_CHECK(is_float(x.dtype()), "gemm of x ", x.dtype());
  FLEXQ_FT_CHECK(is_float(w.dtype()), "gemm of w ", w.dtype());
  if (y.empty()) return;
  cpu::gemm_float(y, x, w, bias);
}

void invokeGemmW8A16(Tensor y, ConstTensor x, ConstTensor w, ConstTensor scale, ConstTensor bias,
                     Stream) {
  check_product(y, x, w, bias);
  FLEXQ_FT_CHECK(is_float(x.dtype()), "w8a16 gemm of x ", x.dtype());
  FLEXQ_FT_CHECK_EQ(w.dtype(), DataType::kInt8, "w8a16 gemm: w");
  check_scale(scale, w.dim(0), "weight scales");
  if (y.empty()) return;
  cpu::gemm_w8a16(y, x, w, scale, bias);
}

void invokeGemmW8A8(Tensor y, ConstTensor codes, ConstTensor act_scale, ConstTensor w,
                    ConstTensor scale, ConstTensor bias, Stream) {
  check_product(y, codes, w, bias);
  FLEXQ_FT_CHECK_EQ(codes.dtype(), DataType::kInt8, "w8a8 gemm: codes");
  FLEXQ_FT_CHECK_EQ(w.dtype(), DataType::kInt8, "w8a8 gemm: w");
  FLEXQ_FT_CHECK_LE(codes.dim(1), kMaxW8A8Depth, "w8a8 gemm: k of an int32 sum");
  check_scale(act_scale, codes.dim(0), "activation scales");
  check_scale(scale, w.dim(0), "weight scales");
  if (y.empty()) return;
  cpu::gemm_w8a8(y, codes, act_scale, w, scale, bias);
}

}  // namespace flexq_ft
