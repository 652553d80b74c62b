// The W6Ax GEMM of a GPU, whichever kernel is right for the problem.
//
// Pointers are to memory of the current device, aligned to 16 bytes. Nothing allocates or
// synchronises. Throws std::invalid_argument for operands that do not fit the problem.
#pragma once

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// The order in which gemm_w6ax_gpu wants the codes of a problem: what to ask of the quantiser.
CodeOrder w6ax_code_order(const GemmProblem& problem);

void gemm_w6ax_gpu(const Output& y, const Activations& x, const Weight& w,
                   const GemmProblem& problem, const Launch& launch);

}  // namespace flexq_kernels::gpu
