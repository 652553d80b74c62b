// The plain W6Ax GEMM: a thread per output, groups one after the other. It is what the fast kernels
// are compared with on a GPU where the CPU is too slow, and it takes every problem and both orders
// of codes; nothing else speaks for it.
#pragma once

#include <cstdint>
#include <string>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// Empty if the kernel takes the problem, otherwise why it does not.
std::string plain_why_not(const GemmProblem& problem, const Device& device);

// y = x · wᵀ: per group the exact sum, scaled by w with one rounding, then one fma with x's scale
// onto the sum so far, in fp32 and in order of the groups.
void plain_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
                const Launch& launch);

// sums [m, n, group_count(k)]: the exact int32 sums of the same loop.
void plain_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                      const GemmProblem& problem, const Launch& launch);

}  // namespace flexq_kernels::gpu
