// The GEMMs of a GPU with six-bit weights, whichever kernel is right for the problem (selector.h).
//
// Pointers are to memory of the current device, aligned to 16 bytes. Nothing allocates or
// synchronises. Throws std::invalid_argument for operands that do not fit the problem. m == 0 is a
// no-op.
#pragma once

#include <cstddef>
#include <string>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/gpu/weight_only_gemm.h"

namespace flexq_kernels::gpu {

// The order in which gemm_w6ax_gpu wants the codes of a problem: what to ask of the quantiser.
CodeOrder w6ax_code_order(const GemmProblem& problem);

// May y of gemm_w6ax_gpu have a gate? Never with act_bits 16.
bool w6ax_takes_gate(const GemmProblem& problem);

// Bytes of the workspace of a problem, 0 where its kernel needs none; and at most, of any problem
// of the current device. It is all zero before its first product; products of any sizes may follow,
// one after another. Those that may run at once need one each: one for each stream.
size_t w6ax_workspace_bytes(const GemmProblem& problem);
size_t w6ax_workspace_bytes();

// workspace: w6ax_workspace_bytes(problem), or null where that is 0.
void gemm_w6ax_gpu(const Output& y, const Activations& x, const Weight& w,
                   const GemmProblem& problem, void* workspace, const Launch& launch);

// act_bits 16: weight_only_gemm of any number of tokens, kWeightOnlyMaxTokens at a time, and so the
// same bits for a token whatever m. Many take longer than a dequantised weight and a GEMM of floats
// (dequantize.h), which rounds the weight.
void gemm_w6a16_gpu(const Output& y, const FloatActivations& x, const Weight& w,
                    const GemmProblem& problem, const Launch& launch);

// What does a problem, of any act_bits, and why: "stream kernel=direct tiles=1 … (table)".
std::string w6ax_choice(const GemmProblem& problem);

// The same, and a line for every other candidate and for each family that does not take it.
std::string explain_w6ax(const GemmProblem& problem);

}  // namespace flexq_kernels::gpu
