#include "ft/kernels/activation.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void run(const LinearInput& out, const Product& x, Activation activation, bool gated,
         RowOrder order, Stream stream) {
  FLEXQ_FT_CHECK_EQ(x.values.rank(), 2, "activation: x ", x.values.shape());
  const int64_t tokens = x.values.dim(0);
  const int64_t columns = x.values.dim(1);
  if (gated) FLEXQ_FT_CHECK_EQ(columns % 2, 0, "activation: columns of gate and up");
  check_product(x, tokens, columns);
  check_linear_input(out, tokens, gated ? columns / 2 : columns);
  if (order.paired != 0) {
    FLEXQ_FT_CHECK_EQ(2 * order.paired, columns, "activation: columns in pairs");
    FLEXQ_FT_CHECK_EQ(order.paired % kBandRows, 0, "activation: columns in pairs");
  }
  if (x.values.empty()) return;
  if (x.values.device() == Device::kCuda) {
    return gpu::activation(out, x, activation, gated, order, stream);
  }
  cpu::check_finished(x);
  FLEXQ_FT_CHECK_EQ(order.paired, 0, "activation: columns in pairs on the CPU");
  FLEXQ_FT_CHECK(!x.bias.defined(), "activation: a bias on the CPU is the linear's");
  cpu::activation(out.values, x.values, activation, gated);
  quantize_values(out, stream);
}

}  // namespace

void invokeGatedActivation(const LinearInput& out, const Product& gate_up, RowOrder order,
                           Activation activation, Stream stream) {
  run(out, gate_up, activation, true, order, stream);
}

void invokeActivation(const LinearInput& out, const Product& x, Activation activation,
                      Stream stream) {
  run(out, x, activation, false, {}, stream);
}

}  // namespace flexq_ft
