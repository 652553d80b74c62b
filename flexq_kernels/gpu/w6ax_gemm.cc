#include "flexq_kernels/gpu/w6ax_gemm.h"

#include <algorithm>
#include <vector>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/selector.h"

namespace flexq_kernels::gpu {

namespace {

// Of the tokens that go at a time, the guess first.
std::vector<WeightOnlyConfig> w6a16_configs(GemmProblem problem) {
  problem.m = std::min(problem.m, kWeightOnlyMaxTokens);
  const std::string why = weight_only_why_not(problem, current_device());
  FLEXQ_CHECK(why.empty(), problem, ": ", why);
  return weight_only_configs(problem, current_device());
}

}  // namespace

CodeOrder w6ax_code_order(const GemmProblem& problem) {
  return code_order(device_selector().choose(problem).candidate);
}

bool w6ax_takes_gate(const GemmProblem& problem) {
  if (problem.act_bits == 16) return false;
  return takes_gate(device_selector().choose(problem).candidate, problem);
}

size_t w6ax_workspace_bytes(const GemmProblem& problem) {
  if (problem.m == 0 || problem.act_bits == 16) return 0;
  return needs_workspace(device_selector().choose(problem).candidate) ? w6ax_workspace_bytes() : 0;
}

size_t w6ax_workspace_bytes() { return workspace_bytes(current_device()); }

void gemm_w6ax_gpu(const Output& y, const Activations& x, const Weight& w,
                   const GemmProblem& problem, void* workspace, const Launch& launch) {
  if (problem.m == 0) return;
  gemm_w6ax(y, x, w, problem, device_selector().choose(problem).candidate, workspace, launch);
}

void gemm_w6a16_gpu(const Output& y, const FloatActivations& x, const Weight& w,
                    const GemmProblem& problem, const Launch& launch) {
  problem.validate();
  const auto row = [](const void* base, int64_t at, FloatType type) -> const void* {
    const int64_t bytes = type == FloatType::kFp32 ? 4 : 2;
    return base == nullptr ? nullptr : static_cast<const char*>(base) + at * bytes;
  };
  Launch how = launch;
  for (int64_t begin = 0; begin < problem.m; begin += kWeightOnlyMaxTokens) {
    GemmProblem part = problem;
    part.m = std::min(kWeightOnlyMaxTokens, problem.m - begin);
    Output to = y;
    to.values = const_cast<void*>(row(y.values, begin * problem.n, y.type));
    to.residual = row(y.residual, begin * problem.n, y.type);
    weight_only_gemm(to, {row(x.values, begin * problem.k, x.type), x.type}, w, part,
                     w6a16_configs(part).front(), how);
    how.programmatic = true;  // behind the part in front
  }
}

std::string w6ax_choice(const GemmProblem& problem) {
  if (problem.act_bits == 16) {
    return detail::join("weight-only ", w6a16_configs(problem).front(), " (default)");
  }
  const Choice choice = device_selector().choose(problem);
  return detail::join(family_name(choice.candidate), " ", config_text(choice.candidate), " (",
                      choice.why, ")");
}

std::string explain_w6ax(const GemmProblem& problem) {
  if (problem.act_bits != 16) return device_selector().explain(problem);
  const std::vector<WeightOnlyConfig> configs = w6a16_configs(problem);
  std::string text = detail::join(problem, ": ", w6ax_choice(problem), "\n");
  if (problem.m > kWeightOnlyMaxTokens) {
    text += detail::join("  ", kWeightOnlyMaxTokens, " tokens at a time\n");
  }
  for (size_t i = 1; i < configs.size(); ++i) {
    text += detail::join("  also weight-only ", configs[i], "\n");
  }
  return text;
}

}  // namespace flexq_kernels::gpu
