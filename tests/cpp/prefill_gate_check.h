// Products of gate and up that end with the activation, compared with the activation in double
// precision, and to the last bit with the product and the op behind it.
#pragma once

#include <algorithm>

#include "ft/kernels/activation.h"
#include "tests/cpp/prefill_check.h"

namespace flexq_test {

struct GateKind {
  gpu::Gate gate;
  flexq_ft::Activation activation;
  const char* name;
};

constexpr GateKind kGates[] = {{gpu::Gate::kSilu, flexq_ft::Activation::kSilu, "silu"},
                               {gpu::Gate::kRelu, flexq_ft::Activation::kRelu, "relu"},
                               {gpu::Gate::kGelu, flexq_ft::Activation::kGelu, "gelu"}};

struct Bounds {
  double low, high;
};

// Of act(gate) * up before it is rounded. A sigmoid is of an exponent that ends at 87, and is off
// by a few units in the last place and by what its argument was rounded by.
inline Bounds gated_bounds(gpu::Gate gate, float gate_value, float up_value) {
  const double g = gate_value, u = up_value;
  if (gate == gpu::Gate::kRelu) {
    const double h = static_cast<double>((gate_value < 0 ? 0.0f : gate_value) * up_value);
    return {h, h};
  }
  const bool silu = gate == gpu::Gate::kSilu;
  const double z = silu ? g : 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
  const double h = g / (1 + std::exp(-z)) * u;
  const double rounded = silu ? 0 : std::min(std::fabs(z), 87.0);
  const double off = std::fabs(h) * 1e-6 * (1 + rounded) + std::fabs(g * u) * 2e-38;
  return {h - off, h + off};
}

// h [m][n / 2] of a gated product, or what the op makes of a plain one of fp32.
template <typename T, typename Config>
bool run_gated(std::vector<unsigned char>& bytes, const Family<Config>& family, Operands& o,
               const GemmProblem& p, const Config& config, FloatType type, const GateKind& gate,
               bool bias, bool programmatic, bool by_op, const std::string& run) {
  Memory h(static_cast<size_t>(p.m * p.n / 2) * sizeof(T));
  Memory y(by_op ? static_cast<size_t>(p.m * p.n) * sizeof(float) : 16);
  gpu::Output out;
  out.values = by_op ? y.at() : h.at();
  out.type = by_op ? FloatType::kFp32 : type;
  out.bias = bias ? o.bias_memory.as<float>() : nullptr;
  out.gate = by_op ? gpu::Gate::kNone : gate.gate;
  launch(run, [&] {
    family.gemm(out, o.activations(), o.weight(), p, config, {stream().handle, programmatic});
    if (!by_op) return;
    const auto dtype = type == FloatType::kFp32   ? flexq_ft::DataType::kFp32
                       : type == FloatType::kFp16 ? flexq_ft::DataType::kFp16
                                                  : flexq_ft::DataType::kBf16;
    constexpr auto kGpu = flexq_ft::Device::kCuda;
    flexq_ft::LinearInput values;
    values.dtype = dtype;
    values.values = flexq_ft::Tensor(h.at(), dtype, {p.m, p.n / 2}, kGpu);
    const flexq_ft::Tensor product(y.at(), flexq_ft::DataType::kFp32, {p.m, p.n}, kGpu);
    flexq_ft::invokeGatedActivation(values, {product, {}, {}, {}}, {p.n / 2}, gate.activation,
                                    stream());
  });
  return h.fetch(bytes);
}

template <typename T, typename Config>
void check_gated(const Family<Config>& family, Operands& o, const GemmProblem& p,
                 const Config& config, FloatType type, const GateKind& gate, bool bias,
                 bool programmatic) {
  std::ostringstream what;
  what << gate.name << " " << name_of(type) << (bias ? " +bias" : "");
  const std::string run = label(what.str().c_str(), family, p, config);
  std::vector<unsigned char> bytes, by_op;
  const bool guards =
      run_gated<T>(bytes, family, o, p, config, type, gate, bias, programmatic, false, run);
  run_gated<T>(by_op, family, o, p, config, type, gate, bias, false, true, run + " by the op");
  if (bytes != by_op) report_failure(__FILE__, __LINE__, run + ": other bits than the op's");
  const std::vector<float>& product = o.product(slices_of(config));
  const T* got = reinterpret_cast<const T*>(bytes.data());
  compare(run, guards, p.m, p.n / 2, [&](int64_t at, std::string* values) {
    const int64_t token = at / (p.n / 2), channel = at % (p.n / 2);
    const int64_t row = channel / 8 * 16 + channel % 8;
    const auto value_of = [&](int64_t of) {
      const float value = product[static_cast<size_t>(token * p.n + of)];
      return bias ? value + o.bias[static_cast<size_t>(of)] : value;
    };
    const float g = value_of(row), u = value_of(row + 8);
    const Bounds bounds = gated_bounds(gate.gate, g, u);
    const float low = widen(round_to<T>(static_cast<float>(bounds.low)));
    const float high = widen(round_to<T>(static_cast<float>(bounds.high)));
    const float h = widen(got[at]);
    if (values != nullptr) {
      std::ostringstream text;
      text.precision(9);
      text << h << " of gate " << g << " and up " << u << ", should be between " << low << " and "
           << high;
      *values = text.str();
    }
    return std::isnan(low) || std::isnan(high) ? std::isnan(h) : low <= h && h <= high;
  });
}

}  // namespace flexq_test
