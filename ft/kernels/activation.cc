#include "ft/kernels/activation.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

void run(Tensor out, ConstTensor x, Activation activation, bool gated) {
  FLEXQ_FT_CHECK(is_float(out.dtype()), "activation into ", out.dtype());
  FLEXQ_FT_CHECK_EQ(out.rank(), 2, "activation: out ", out.shape());
  FLEXQ_FT_CHECK_EQ(x.rank(), 2, "activation: x ", x.shape());
  FLEXQ_FT_CHECK_EQ(x.dim(0), out.dim(0), "activation: tokens of x and out");
  FLEXQ_FT_CHECK_EQ(x.dim(1), out.dim(1) * (gated ? 2 : 1), "activation: columns of x for out ",
                    out.shape());
  FLEXQ_FT_CHECK_EQ(x.dtype(), DataType::kFp32, "activation: x");
  if (out.empty()) return;
  cpu::activation(out, x, activation, gated);
}

}  // namespace

void invokeGatedActivation(Tensor out, ConstTensor gate_up, Activation activation, Stream) {
  run(out, gate_up, activation, true);
}

void invokeActivation(Tensor out, ConstTensor x, Activation activation, Stream) {
  run(out, x, activation, false);
}

}  // namespace flexq_ft
