// A kernel on a problem, compared with the group sums that it must have.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "tests/cpp/w6ax_case.h"
#include "tests/cpp/w6ax_implementations.h"

namespace flexq_test {

inline void expect_none(const std::string& difference, const std::string& what) {
  if (!difference.empty()) report_failure(__FILE__, __LINE__, what + ": " + difference);
}

inline std::string text(const GemmProblem& problem) {
  std::ostringstream out;
  out << problem;
  return out.str();
}

// One kernel on one problem: its group sums, then its outputs twice, as a programmatic launch too.
inline void check_product(const Implementation& kernel, flexq_kernels::gpu::CodeOrder order,
                          const WeightCase& w, const InputCase& x, OutputCase& y,
                          const std::vector<int32_t>& want) {
  const GemmProblem problem{x.m, w.n, w.k, x.act_bits};
  const std::string name =
      kernel.name + " " + text(problem) + " order " + std::to_string(static_cast<int>(order));
  const bool exactly = kernel.name == "plain";
  const DeviceArray<int32_t> sums(static_cast<int64_t>(want.size()));
  kernel.group_sums(sums.data(), x.gpu(order), w.gpu(), problem, plain_launch());
  expect_none(compare_sums(sums.fetch("group sums"), want, w.n, w.groups), name);
  y.values.poison();
  kernel.gemm(y.gpu(), x.gpu(order), w.gpu(), problem, plain_launch());
  const std::vector<uint8_t> first = y.values.fetch("outputs");
  expect_none(compare_outputs(first, w, x, y, want, exactly), name);
  y.values.poison();
  kernel.gemm(y.gpu(), x.gpu(order), w.gpu(), problem, dependent_launch());
  expect_same(y.values.fetch("outputs"), first, name + ", a second time");
}

}  // namespace flexq_test
