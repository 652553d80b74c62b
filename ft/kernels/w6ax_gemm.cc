#include "ft/kernels/w6ax_gemm.h"

#include <utility>

#include "flexq_kernels/gpu/selector.h"
#include "flexq_kernels/gpu/w6ax_gemm.h"
#include "ft/core/buffer.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"
#include "ft/core/library_errors.h"
#include "ft/core/row_order.h"

namespace flexq_ft {

namespace fk = ::flexq_kernels;

namespace {

// The library's own checks are broken invariants here.
template <typename Call>
decltype(auto) as_errors(Call&& call) {
  return with_library_errors(ErrorKind::kInternal, std::forward<Call>(call));
}

// Puts one kernel on the stream; it may start before another of ours in front of it has ended.
template <typename F>
void launch(Stream stream, F&& put) {
  put(fk::gpu::Launch{stream.handle, stream.tail != nullptr && stream.tail->our_kernel});
  if (stream.tail != nullptr) stream.tail->our_kernel = true;
}

static_assert(2 * kBandRows == fk::kTileRows);

fk::gpu::Gate gate_of(std::optional<Activation> activation) {
  if (!activation) return fk::gpu::Gate::kNone;
  switch (*activation) {
    case Activation::kSilu:
      return fk::gpu::Gate::kSilu;
    case Activation::kRelu:
      return fk::gpu::Gate::kRelu;
    case Activation::kGelu:
      return fk::gpu::Gate::kGelu;
  }
  FLEXQ_FT_CHECK(false, "activation ", static_cast<int>(*activation));
}

class SelectingGemm final : public W6axGemm {
 public:
  SelectingGemm()
      : workspace_(fk::gpu::w6ax_workspace_bytes(), MemoryKind::kWorkspace, Device::kCuda) {
    cuda::fill(workspace_.data(), 0, workspace_.bytes(), {});
    cuda::synchronize({});
  }

  fk::gpu::CodeOrder code_order(const fk::GemmProblem& problem) const override {
    return as_errors([&] { return fk::gpu::w6ax_code_order(problem); });
  }

  bool takes_gate(const fk::GemmProblem& problem) const override {
    return as_errors([&] { return fk::gpu::w6ax_takes_gate(problem); });
  }

  void run(Tensor y, const LinearInput& x, const fk::gpu::Weight& w, ConstTensor bias,
           const fk::GemmProblem& problem, std::optional<Activation> gate, Stream stream) override {
    FLEXQ_FT_CHECK_EQ(y.shape(), (Shape{problem.m, gate ? problem.n / 2 : problem.n}), problem);
    FLEXQ_FT_CHECK(y.dtype() == DataType::kFp32 || y.dtype() == x.dtype, problem, ": y of ",
                   y.dtype());
    check_linear_input(x, problem.m, problem.k);
    FLEXQ_FT_CHECK_EQ(x.quantized() ? x.act_bits : 16, problem.act_bits, problem);
    if (bias.defined()) FLEXQ_FT_CHECK_EQ(bias.shape(), (Shape{problem.n}), problem, ": bias");
    if (y.empty()) return;
    const fk::gpu::Output out{y.raw(), float_type(y.dtype()),
                              bias.defined() ? bias.data<float>() : nullptr, nullptr,
                              gate_of(gate)};
    as_errors([&] {
      if (x.quantized()) {
        run_quantized(out, x, w, problem, stream);
      } else {
        run_weight_only(out, x.values, w, problem, stream);
      }
    });
  }

  std::string choice(const fk::GemmProblem& problem) const override {
    return as_errors([&] { return fk::gpu::w6ax_choice(problem); });
  }

  std::string table_note() const override { return fk::gpu::device_selector().note(); }

 private:
  void run_quantized(const fk::gpu::Output& y, const LinearInput& x, const fk::gpu::Weight& w,
                     const fk::GemmProblem& problem, Stream stream) {
    const fk::gpu::Activations codes{x.codes.data<int8_t>(), x.scales.data<float>(), x.scale_stride,
                                     x.order};
    launch(stream, [&](const fk::gpu::Launch& how) {
      fk::gpu::gemm_w6ax_gpu(y, codes, w, problem, workspace_.data(), how);
    });
  }

  // A dequantised weight and a product of floats would take less time for many tokens, but round
  // the weight: codes times scales have more bits than 16.
  void run_weight_only(const fk::gpu::Output& y, ConstTensor x, const fk::gpu::Weight& w,
                       const fk::GemmProblem& problem, Stream stream) {
    const fk::gpu::FloatActivations values{x.raw(), float_type(x.dtype())};
    launch(stream, [&](const fk::gpu::Launch& how) {
      fk::gpu::gemm_w6a16_gpu(y, values, w, problem, how);
    });
  }

  Buffer workspace_;  // zero before its first use
};

}  // namespace

std::string explain_w6ax(const fk::GemmProblem& problem) {
  return with_library_errors(ErrorKind::kConfig, [&] {
    return fk::gpu::device_selector().note() + "\n" + fk::gpu::explain_w6ax(problem);
  });
}

std::unique_ptr<W6axGemm> make_w6ax_gemm() {
  return as_errors([] { return std::make_unique<SelectingGemm>(); });
}

size_t w6ax_gemm_workspace_bytes() {
  return as_errors([] { return fk::gpu::w6ax_workspace_bytes(); });
}

}  // namespace flexq_ft
