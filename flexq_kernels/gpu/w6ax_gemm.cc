#include "flexq_kernels/gpu/w6ax_gemm.h"

#include "flexq_kernels/gpu/selector.h"

namespace flexq_kernels::gpu {

CodeOrder w6ax_code_order(const GemmProblem& problem) {
  return code_order(device_selector().choose(problem).candidate);
}

void gemm_w6ax_gpu(const Output& y, const Activations& x, const Weight& w,
                   const GemmProblem& problem, const Launch& launch) {
  if (problem.m == 0) return;
  gemm_w6ax(y, x, w, problem, device_selector().choose(problem).candidate, nullptr, launch);
}

}  // namespace flexq_kernels::gpu
