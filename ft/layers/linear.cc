#include "ft/layers/linear.h"

#include "ft/core/cuda.h"
#include "ft/kernels/gemm.h"

namespace flexq_ft {

namespace {

// Named by its own rows; a panel layout pads them to 16 behind.
Tensor matrix(const LinearWeight& weight) {
  return weight.codes.tensor(weight.format.storage, {weight.n, weight.k});
}

ConstTensor vector_of(const Buffer& buffer, int64_t n) {
  return buffer.defined() ? buffer.tensor(DataType::kFp32, {n}) : Tensor();
}

flexq_kernels::PackedWeight packed(const LinearWeight& weight) {
  return {static_cast<const uint8_t*>(weight.codes.data()),
          static_cast<const uint16_t*>(weight.scales.data())};
}

// Up to so many tokens a GPU has products of its own, whose sums are fp32.
constexpr int64_t kUnroundedTokens = 64;

// The same memory as another type of the same size.
Tensor as(Tensor t, DataType dtype) {
  FLEXQ_FT_CHECK_EQ(size_of(dtype), size_of(t.dtype()), "view of ", t.dtype(), " as ", dtype);
  return Tensor(t.raw(), dtype, t.shape(), t.device());
}

// A host copy of a tensor, for an observer.
struct HostCopy {
  Buffer buffer;
  HostCopy(ConstTensor x, Stream stream) : buffer(x.dtype(), x.shape(), MemoryKind::kWorkspace) {
    cuda::copy(buffer.data(), x.raw(), x.bytes(), stream);
    cuda::synchronize(stream);
  }
};

}  // namespace

ActivationCodes ActivationCodes::of(const DataFormat& format, int64_t k) {
  if (!format.quantizes_activations()) return {};
  const int64_t group = format.group_size == 0 ? k : format.group_size;
  const int64_t groups = (k + group - 1) / group;
  return {groups * group, groups};
}

LinearInput Linear::input(Tensor values, const LayerContext& context) const {
  const DataFormat& format = weight_->format;
  const int64_t tokens = values.dim(0);
  LinearInput out;
  out.dtype = values.dtype();
  const bool on_cpu = context.device.device == Device::kCpu;
  if (on_cpu || !format.quantizes_activations() || context.watchers.observer != nullptr)
    out.values = values;
  if (!format.quantizes_activations()) return out;
  const ActivationCodes shape = ActivationCodes::of(format, weight_->k);
  out.codes = context.workspace.codes(tokens, shape.k);
  out.group = shape.k / shape.groups;
  out.act_bits = format.act_bits;
  out.static_scale = weight_->act_scale;
  if (format.layout != Layout::kFrag16x128Tiled) {
    out.scales = context.workspace.act_scales(tokens, shape.groups);
    return out;
  }
  out.scale_stride = flexq_kernels::gpu::scale_stride_of(tokens);
  out.scales = context.workspace.act_scales(shape.groups, out.scale_stride);
  if (tokens > 0) out.order = context.device.w6ax->code_order(problem(tokens));
  return out;
}

flexq_kernels::GemmProblem Linear::problem(int64_t tokens) const {
  return {tokens, weight_->n, weight_->k, weight_->format.act_bits};
}

bool Linear::can_round(int64_t tokens, const LayerContext& context) const {
  if (context.device.device == Device::kCpu || context.watchers.observer != nullptr) return false;
  const Scheme scheme = weight_->format.scheme;
  if (scheme == Scheme::kW6Ax) return true;
  return scheme == Scheme::kFloat && !weight_->bias.defined() && weight_->n % 8 == 0 &&
         tokens > kUnroundedTokens;
}

bool Linear::can_gate(int64_t tokens, const LayerContext& context) const {
  if (context.device.device == Device::kCpu || context.watchers.observer != nullptr) return false;
  return weight_->format.scheme == Scheme::kW6Ax && weight_->rows.paired != 0 && tokens > 0 &&
         context.device.w6ax->takes_gate(problem(tokens));
}

Product Linear::forward(Tensor y, const LinearInput& x, const LayerContext& context) const {
  FLEXQ_FT_CHECK_EQ(y.shape(), (Shape{x.tokens(), weight_->n}), weight_->name);
  check_linear_input(x, x.tokens(), weight_->k);
  Product product{y, {}, {}, {}};
  if (y.empty()) return product;
  product = multiply(y, x, context);
  if (context.watchers.observer == nullptr) return product;
  if (y.device() == Device::kCpu) {
    context.watchers.observer->saw(weight_->name, x.values, product.values);
    return product;
  }
  invokeFinishProduct(y, product, context.stream());
  const HostCopy seen_x(x.values, context.stream());
  const HostCopy seen_y(y, context.stream());
  weight_->rows.restore(static_cast<float*>(seen_y.buffer.data()), y.dim(0), y.dim(1));
  context.watchers.observer->saw(weight_->name, seen_x.buffer.tensor(), seen_y.buffer.tensor());
  return {y, {}, {}, {}};
}

void Linear::forward_gated(Tensor h, const LinearInput& x, Activation activation,
                           const LayerContext& context) const {
  FLEXQ_FT_CHECK(can_gate(x.tokens(), context), weight_->name, ": a gate on ", x.tokens(),
                 " tokens");
  multiply_w6ax(h, x, activation, context);
}

Product Linear::multiply(Tensor y, const LinearInput& x, const LayerContext& context) const {
  if (context.device.device == Device::kCuda) return multiply_gpu(y, x, context);
  return multiply_cpu(y, x, context);
}

Product Linear::multiply_cpu(Tensor y, const LinearInput& x, const LayerContext& context) const {
  const LinearWeight& w = *weight_;
  const ConstTensor bias = vector_of(w.bias, w.n);
  const auto* bias_values = static_cast<const float*>(w.bias.data());
  switch (w.format.scheme) {
    case Scheme::kFloat:
      invokeGemmFloat(y, x.values, matrix(w), bias, context.stream());
      break;
    case Scheme::kW8A16:
      invokeGemmW8A16(y, x.values, matrix(w), vector_of(w.scales, w.n), bias, context.stream());
      break;
    case Scheme::kW8A8:
      invokeGemmW8A8(y, x.codes, x.scales.view({x.tokens()}), matrix(w), vector_of(w.scales, w.n),
                     bias, context.stream());
      break;
    case Scheme::kW6Ax:
      if (x.quantized()) {
        flexq_kernels::gemm_w6ax(y.data<float>(), {x.codes.data<int8_t>(), x.scales.data<float>()},
                                 packed(w), bias_values, problem(x.tokens()));
      } else {
        flexq_kernels::gemm_w6a16(y.data<float>(), x.values.raw(), float_type(x.dtype), packed(w),
                                  bias_values, problem(x.tokens()));
      }
      break;
  }
  return {y, {}, {}, {}};
}

Product Linear::multiply_gpu(Tensor y, const LinearInput& x, const LayerContext& context) const {
  const LinearWeight& w = *weight_;
  const Scheme scheme = w.format.scheme;
  if (scheme == Scheme::kW6Ax) {
    multiply_w6ax(y, x, std::nullopt, context);
    return {y, {}, {}, {}};
  }
  const bool int8 = scheme == Scheme::kW8A8;
  const Tensor values = int8 ? as(y, DataType::kInt32) : y;
  context.device.gemm->run(values, int8 ? x.codes : x.values, matrix(w), scheme, context.stream());
  return {values, int8 ? ConstTensor(x.scales.view({x.tokens()})) : ConstTensor(),
          vector_of(w.scales, w.n), vector_of(w.bias, w.n)};
}

// Scales and bias are the kernel's own.
void Linear::multiply_w6ax(Tensor y, const LinearInput& x, std::optional<Activation> gate,
                           const LayerContext& context) const {
  const LinearWeight& w = *weight_;
  const flexq_kernels::gpu::Weight tiles{static_cast<const uint8_t*>(w.codes.data()),
                                         static_cast<const uint16_t*>(w.scales.data())};
  context.device.w6ax->run(y, x, tiles, vector_of(w.bias, w.n), problem(x.tokens()), gate,
                           context.stream());
}

Product reduce_row_parallel(Product product, const Buffer& bias, const LayerContext& context) {
  const int64_t n = product.values.dim(1);
  if (context.comm.size() > 1) {
    const Tensor sum = as(product.values, DataType::kFp32);
    if (sum.device() == Device::kCuda) invokeFinishProduct(sum, product, context.stream());
    context.comm.all_reduce(sum, context.stream());
    product = {sum, {}, {}, {}};
  }
  product.bias = vector_of(bias, n);
  return product;
}

}  // namespace flexq_ft
