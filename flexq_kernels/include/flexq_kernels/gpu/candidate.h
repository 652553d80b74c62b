// The ways to do a W6Ax product on a GPU: a family of kernels and one of its configurations.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/gpu/mma_gemm.h"
#include "flexq_kernels/gpu/stream_gemm.h"
#include "flexq_kernels/gpu/wgmma_gemm.h"

namespace flexq_kernels::gpu {

using Candidate = std::variant<StreamConfig, WgmmaConfig, MmaConfig>;

// Of a family in the order of Candidate: "stream", "wgmma" or "mma".
const char* family_name(const Candidate& candidate);

// What a table's row says of it: "rows=4 stages=7"; and back, nothing if it means nothing here.
std::string config_text(const Candidate& candidate);
std::optional<Candidate> parse_candidate(const std::string& family, const std::string& config);

// In which order the kernel reads a token's codes.
CodeOrder code_order(const Candidate& candidate);

struct Refusal {
  std::string family;
  std::string reason;
};

// Every candidate that takes the problem, the deterministic default first; and why families do not.
std::vector<Candidate> candidates(const GemmProblem& problem, const Device& device,
                                  std::vector<Refusal>* refusals = nullptr);

// Bytes of workspace that any candidate wants at most on a device. It is all zero before its first
// use, and products that may run at once need one each.
size_t workspace_bytes(const Device& device);

// Does the candidate want a workspace at all?
bool needs_workspace(const Candidate& candidate);

// May the problem's Output have a gate? In the wgmma family's widest tiles (wgmma_takes_gate),
// where n is of whole row tiles.
bool takes_gate(const Candidate& candidate, const GemmProblem& problem);

// y = dequant(q_a · q_wᵀ) + bias (+ residual, or gated) by this candidate; m == 0 is a no-op.
// workspace: may be null where the candidate needs none.
void gemm_w6ax(const Output& y, const Activations& a, const Weight& w, const GemmProblem& problem,
               const Candidate& candidate, void* workspace, const Launch& launch);

// The exact int32 group sums [m, n, group_count(k)] of the same inner loop.
void group_sums_w6ax(int32_t* sums, const Activations& a, const Weight& w,
                     const GemmProblem& problem, const Candidate& candidate, const Launch& launch);

}  // namespace flexq_kernels::gpu
