#include "ft/layers/linear.h"

#include "flexq_kernels/gemm.h"
#include "flexq_kernels/quantize.h"
#include "ft/kernels/gemm.h"
#include "ft/kernels/residual.h"

namespace flexq_ft {

namespace {

flexq_kernels::FloatType float_type(DataType dtype) {
  FLEXQ_FT_CHECK(is_float(dtype), "activations of ", dtype);
  if (dtype == DataType::kFp16) return flexq_kernels::FloatType::kFp16;
  if (dtype == DataType::kBf16) return flexq_kernels::FloatType::kBf16;
  return flexq_kernels::FloatType::kFp32;
}

// Named by its own rows; the layout pads them to 16 behind.
Tensor panel(const LinearWeight& weight) {
  return weight.codes.tensor(weight.format.storage, {weight.n, weight.k});
}

ConstTensor vector_of(const Buffer& buffer, int64_t n) {
  return buffer.defined() ? buffer.tensor(DataType::kFp32, {n}) : Tensor();
}

flexq_kernels::PackedWeight packed(const LinearWeight& weight) {
  return {static_cast<const uint8_t*>(weight.codes.data()),
          static_cast<const uint16_t*>(weight.scales.data())};
}

}  // namespace

ActivationCodes ActivationCodes::of(const DataFormat& format, int64_t k) {
  if (!format.quantizes_activations()) return {};
  const int64_t group = format.group_size == 0 ? k : format.group_size;
  const int64_t groups = (k + group - 1) / group;
  return {groups * group, groups};
}

void Linear::forward(Tensor y, ConstTensor x, const LayerContext& context) const {
  FLEXQ_FT_CHECK_EQ(x.dim(1), weight_->k, weight_->name);
  FLEXQ_FT_CHECK_EQ(y.dim(1), weight_->n, weight_->name);
  FLEXQ_FT_CHECK_EQ(y.dim(0), x.dim(0), weight_->name);
  if (y.empty()) return;
  if (weight_->format.quantizes_activations()) {
    multiply_quantized(y, x, context);
  } else {
    multiply(y, x, context);
  }
  if (context.observer != nullptr) context.observer->saw(weight_->name, x, y);
}

void Linear::multiply(Tensor y, ConstTensor x, const LayerContext& context) const {
  const LinearWeight& w = *weight_;
  const ConstTensor bias = vector_of(w.bias, w.n);
  switch (w.format.scheme) {
    case Scheme::kFloat:
      return invokeGemmFloat(y, x, panel(w), bias, context.stream);
    case Scheme::kW8A16:
      return invokeGemmW8A16(y, x, panel(w), vector_of(w.scales, w.n), bias, context.stream);
    case Scheme::kW6Ax:
      return flexq_kernels::gemm_w6a16(y.data<float>(), x.raw(), float_type(x.dtype()), packed(w),
                                       static_cast<const float*>(w.bias.data()),
                                       {x.dim(0), w.n, w.k, w.format.act_bits});
    case Scheme::kW8A8:
      break;
  }
  FLEXQ_FT_CHECK(false, "no product for ", w.name, ": ", w.format);
}

void Linear::multiply_quantized(Tensor y, ConstTensor x, const LayerContext& context) const {
  const LinearWeight& w = *weight_;
  const int64_t m = x.dim(0);
  const ActivationCodes shape = ActivationCodes::of(w.format, w.k);
  const Tensor codes = context.workspace.codes(m, shape.k);
  const Tensor scales = context.workspace.act_scales(m, shape.groups);
  flexq_kernels::quantize_activations(codes.data<int8_t>(), scales.data<float>(), x.raw(),
                                      float_type(x.dtype()), m, w.k, shape.k / shape.groups,
                                      w.format.act_bits);
  switch (w.format.scheme) {
    case Scheme::kW8A8:
      return invokeGemmW8A8(y, codes, scales.view({m}), panel(w), vector_of(w.scales, w.n),
                            vector_of(w.bias, w.n), context.stream);
    case Scheme::kW6Ax:
      return flexq_kernels::gemm_w6ax(y.data<float>(), {codes.data<int8_t>(), scales.data<float>()},
                                      packed(w), static_cast<const float*>(w.bias.data()),
                                      {m, w.n, w.k, w.format.act_bits});
    case Scheme::kFloat:
    case Scheme::kW8A16:
      break;
  }
  FLEXQ_FT_CHECK(false, "no product for ", w.name, ": ", w.format);
}

void add_row_parallel(Tensor residual, Tensor product, const Buffer& bias,
                      const LayerContext& context) {
  context.comm.all_reduce(product, context.stream);
  const ConstTensor bias_view =
      bias.defined() ? bias.tensor(DataType::kFp32, {residual.dim(1)}) : Tensor();
  invokeAddResidual(residual, product, bias_view, context.stream);
}

}  // namespace flexq_ft
