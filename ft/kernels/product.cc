#include "ft/kernels/product.h"

#include "flexq_kernels/quantize.h"
#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

constexpr int64_t kFragmentGroup = flexq_kernels::kGroupSize;

void check_vector(ConstTensor vector, int64_t count, const char* what) {
  if (!vector.defined()) return;
  FLEXQ_FT_CHECK_EQ(vector.shape(), (Shape{count}), "product: ", what);
  FLEXQ_FT_CHECK_EQ(vector.dtype(), DataType::kFp32, "product: ", what);
}

}  // namespace

flexq_kernels::FloatType float_type(DataType dtype) {
  FLEXQ_FT_CHECK(is_float(dtype), "activations of ", dtype);
  if (dtype == DataType::kFp16) return flexq_kernels::FloatType::kFp16;
  if (dtype == DataType::kBf16) return flexq_kernels::FloatType::kBf16;
  return flexq_kernels::FloatType::kFp32;
}

void check_linear_input(const LinearInput& input, int64_t tokens, int64_t k) {
  FLEXQ_FT_CHECK(input.values.defined() || input.quantized(), "input of a linear: undefined");
  FLEXQ_FT_CHECK(is_float(input.dtype), "input of a linear: ", input.dtype);
  if (input.values.defined()) {
    FLEXQ_FT_CHECK_EQ(input.values.shape(), (Shape{tokens, k}), "input of a linear: values");
    FLEXQ_FT_CHECK_EQ(input.values.dtype(), input.dtype, "input of a linear: values");
  }
  if (!input.quantized()) return;
  FLEXQ_FT_CHECK_LT(0, input.group, "input of a linear: group");
  FLEXQ_FT_CHECK(input.act_bits == 6 || input.act_bits == 8, "act_bits ", input.act_bits);
  const int64_t groups = (k + input.group - 1) / input.group;
  FLEXQ_FT_CHECK_EQ(input.codes.shape(), (Shape{tokens, groups * input.group}), "codes of k ", k);
  FLEXQ_FT_CHECK_EQ(input.codes.dtype(), DataType::kInt8, "codes");
  const int64_t stride = input.scale_stride;
  FLEXQ_FT_CHECK(stride == 0 || stride >= tokens, "scales of ", tokens, " tokens, stride ", stride);
  FLEXQ_FT_CHECK_EQ(input.scales.shape(),
                    (stride == 0 ? Shape{tokens, groups} : Shape{groups, stride}), "scales of k ",
                    k);
  FLEXQ_FT_CHECK(
      input.order == flexq_kernels::gpu::CodeOrder::kNatural || input.group == kFragmentGroup,
      "codes in the order of fragments: groups of ", input.group);
  FLEXQ_FT_CHECK_EQ(input.scales.dtype(), DataType::kFp32, "scales");
}

void check_product(const Product& product, int64_t tokens, int64_t n) {
  FLEXQ_FT_CHECK_EQ(product.values.shape(), (Shape{tokens, n}), "product: values");
  const DataType dtype = product.values.dtype();
  const bool raw = dtype == DataType::kFp32 || dtype == DataType::kInt32;
  const bool finished =
      !product.act_scale.defined() && !product.weight_scale.defined() && !product.bias.defined();
  FLEXQ_FT_CHECK(raw || (is_float(dtype) && finished), "product of ", dtype);
  check_vector(product.act_scale, tokens, "scales of the tokens");
  check_vector(product.weight_scale, n, "scales of the weight");
  check_vector(product.bias, n, "bias");
}

void quantize_values(const LinearInput& input, Stream stream) {
  if (!input.quantized()) return;
  if (input.codes.device() == Device::kCuda) return gpu::quantize_activations(input, stream);
  FLEXQ_FT_CHECK(input.scale_stride == 0, "scales by group on the CPU");
  const ConstTensor x = input.values;
  flexq_kernels::quantize_activations(input.codes.data<int8_t>(), input.scales.data<float>(),
                                      x.raw(), float_type(x.dtype()), x.dim(0), x.dim(1),
                                      input.group, input.act_bits, input.static_scale);
}

void invokeFinishProduct(Tensor out, const Product& product, Stream stream) {
  FLEXQ_FT_CHECK_EQ(out.rank(), 2, "product into ", out.shape());
  FLEXQ_FT_CHECK_EQ(out.dtype(), DataType::kFp32, "product into ", out.shape());
  check_product(product, out.dim(0), out.dim(1));
  if (out.empty()) return;
  const bool finished = product.values.dtype() == DataType::kFp32 && !product.act_scale.defined() &&
                        !product.weight_scale.defined() && !product.bias.defined();
  if (finished && out.raw() == product.values.raw()) return;
  if (out.device() == Device::kCuda) return gpu::finish_product(out, product, stream);
  cpu::finish_product(out, product);
}

}  // namespace flexq_ft
