#include "flexq_kernels/gpu/w6ax_gemm.h"

#include "flexq_kernels/gpu/selector.h"

namespace flexq_kernels::gpu {

CodeOrder w6ax_code_order(const GemmProblem& problem) {
  return code_order(device_selector().choose(problem).candidate);
}

size_t w6ax_workspace_bytes(const GemmProblem& problem) {
  if (problem.m == 0) return 0;
  return needs_workspace(device_selector().choose(problem).candidate) ? w6ax_workspace_bytes() : 0;
}

size_t w6ax_workspace_bytes() { return workspace_bytes(current_device()); }

void gemm_w6ax_gpu(const Output& y, const Activations& x, const Weight& w,
                   const GemmProblem& problem, void* workspace, const Launch& launch) {
  if (problem.m == 0) return;
  gemm_w6ax(y, x, w, problem, device_selector().choose(problem).candidate, workspace, launch);
}

}  // namespace flexq_kernels::gpu
