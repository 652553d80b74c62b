#include "flexq_kernels/gpu/w6ax_gemm.h"

#include "flexq_kernels/gpu/plain_gemm.h"

namespace flexq_kernels::gpu {

CodeOrder w6ax_code_order(const GemmProblem&) { return CodeOrder::kFragment; }

void gemm_w6ax_gpu(const Output& y, const Activations& x, const Weight& w,
                   const GemmProblem& problem, const Launch& launch) {
  plain_gemm(y, x, w, problem, launch);
}

}  // namespace flexq_kernels::gpu
