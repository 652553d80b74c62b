#include "ft/kernels/w6ax_gemm.h"

#include <algorithm>
#include <stdexcept>

#include "flexq_kernels/gpu/selector.h"
#include "flexq_kernels/gpu/w6ax_gemm.h"
#include "flexq_kernels/gpu/weight_only_gemm.h"
#include "ft/core/buffer.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

namespace fk = ::flexq_kernels;

namespace {

// What flexq_kernels throws, as an Error: its own checks are broken invariants here.
template <typename F>
decltype(auto) as_errors(F&& f) {
  try {
    return f();
  } catch (const Error&) {
    throw;
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::kInternal, error.what());
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kDevice, error.what());
  }
}

// Puts one kernel on the stream; it may start before another of ours in front of it has ended.
template <typename F>
void launch(Stream stream, F&& put) {
  put(fk::gpu::Launch{stream.handle, stream.tail != nullptr && stream.tail->our_kernel});
  if (stream.tail != nullptr) stream.tail->our_kernel = true;
}

class SelectingGemm final : public W6axGemm {
 public:
  SelectingGemm()
      : device_(fk::gpu::current_device()),
        workspace_(fk::gpu::w6ax_workspace_bytes(), MemoryKind::kWorkspace, Device::kCuda) {
    cuda::fill(workspace_.data(), 0, workspace_.bytes(), {});
    cuda::synchronize({});
  }

  fk::gpu::CodeOrder code_order(const fk::GemmProblem& problem) const override {
    return as_errors([&] { return fk::gpu::w6ax_code_order(problem); });
  }

  void run(Tensor y, const LinearInput& x, const fk::gpu::Weight& w, ConstTensor bias,
           const fk::GemmProblem& problem, Stream stream) override {
    FLEXQ_FT_CHECK_EQ(y.shape(), (Shape{problem.m, problem.n}), problem);
    FLEXQ_FT_CHECK(y.dtype() == DataType::kFp32 || y.dtype() == x.dtype, problem, ": y of ",
                   y.dtype());
    check_linear_input(x, problem.m, problem.k);
    FLEXQ_FT_CHECK_EQ(x.quantized() ? x.act_bits : 16, problem.act_bits, problem);
    if (bias.defined()) FLEXQ_FT_CHECK_EQ(bias.shape(), (Shape{problem.n}), problem, ": bias");
    if (y.empty()) return;
    as_errors([&] {
      if (x.quantized()) {
        run_quantized(y, x, w, bias, problem, stream);
      } else {
        run_weight_only(y, x.values, w, bias, problem, stream);
      }
    });
  }

  std::string choice(const fk::GemmProblem& problem) const override {
    return as_errors([&] {
      if (problem.act_bits == 16) return detail::join("weight-only ", weight_only_config(problem));
      const fk::gpu::Choice choice = fk::gpu::device_selector().choose(problem);
      return detail::join(fk::gpu::family_name(choice.candidate), " ",
                          fk::gpu::config_text(choice.candidate), " (", choice.why, ")");
    });
  }

  std::string table_note() const override { return fk::gpu::device_selector().note(); }

 private:
  static fk::gpu::Output output(Tensor y, ConstTensor bias) {
    return {y.raw(), float_type(y.dtype()), bias.defined() ? bias.data<float>() : nullptr, nullptr};
  }

  void run_quantized(Tensor y, const LinearInput& x, const fk::gpu::Weight& w, ConstTensor bias,
                     const fk::GemmProblem& problem, Stream stream) {
    const fk::gpu::Activations codes{x.codes.data<int8_t>(), x.scales.data<float>(), x.scale_stride,
                                     x.order};
    launch(stream, [&](const fk::gpu::Launch& how) {
      fk::gpu::gemm_w6ax_gpu(output(y, bias), codes, w, problem, workspace_.data(), how);
    });
  }

  // The kernels take so many tokens at a time. A dequantised weight and a product of floats would
  // take less time for many, but round the weight: codes times scales have more bits than 16.
  void run_weight_only(Tensor y, ConstTensor x, const fk::gpu::Weight& w, ConstTensor bias,
                       const fk::GemmProblem& problem, Stream stream) {
    for (int64_t begin = 0; begin < problem.m; begin += fk::gpu::kWeightOnlyMaxTokens) {
      fk::GemmProblem part = problem;
      part.m = std::min(fk::gpu::kWeightOnlyMaxTokens, problem.m - begin);
      const int64_t end = begin + part.m;
      const fk::gpu::FloatActivations values{x.rows(begin, end).raw(), float_type(x.dtype())};
      launch(stream, [&](const fk::gpu::Launch& how) {
        fk::gpu::weight_only_gemm(output(y.rows(begin, end), bias), values, w, part,
                                  weight_only_config(part), how);
      });
    }
  }

  fk::gpu::WeightOnlyConfig weight_only_config(const fk::GemmProblem& problem) const {
    fk::GemmProblem part = problem;
    part.m = std::min(fk::gpu::kWeightOnlyMaxTokens, problem.m);
    const std::vector<fk::gpu::WeightOnlyConfig> configs =
        fk::gpu::weight_only_configs(part, device_);
    if (configs.empty()) {
      throw std::invalid_argument(fk::gpu::weight_only_why_not(part, device_));
    }
    return configs.front();
  }

  const fk::gpu::Device& device_;
  Buffer workspace_;  // zero before its first use
};

}  // namespace

std::unique_ptr<W6axGemm> make_w6ax_gemm() {
  return as_errors([] { return std::make_unique<SelectingGemm>(); });
}

size_t w6ax_gemm_workspace_bytes() {
  return as_errors([] { return fk::gpu::w6ax_workspace_bytes(); });
}

}  // namespace flexq_ft
