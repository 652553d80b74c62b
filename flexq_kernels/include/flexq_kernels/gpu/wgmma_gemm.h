// W6Ax GEMM of many tokens on Hopper (sm_90a): warpgroup matrix instructions with the weights as
// their A operand, unpacked into registers, and the tokens as B, copied by TMA. Activations in
// CodeOrder::kNatural. A row's sum goes over its groups in ascending order, in configs that
// slice K inside each slice: configs with equally many slices give a row the same bits, alone and
// in any batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// A block computes `rows` x `tokens` at a time; `cluster` blocks of neighbouring rows share the
// copies of their tokens. Where the tiles do not come out even, `split` cuts the last ones, so that
// all blocks end together; that needs a workspace.
//
// `sliced`, for no more tokens than a tile has: a cluster of `cluster` blocks computes one tile,
// each a slice of K, whose sums are added in order.
struct WgmmaConfig {
  int rows = 128;    // 128, or 192 or 256 with 128 tokens
  int tokens = 192;  // 64, 128, 192 or 256; sliced: 32 too
  int cluster = 2;   // 1 or 2; sliced: 1 to 8, of more than 64 tokens 2 to 8
  bool split = false;
  bool sliced = false;

  bool operator==(const WgmmaConfig& other) const {
    return rows == other.rows && tokens == other.tokens && cluster == other.cluster &&
           split == other.split && sliced == other.sliced;
  }
};

// May y have a gate? In the widest tiles, which prompts of some hundreds of tokens take; the code
// for it makes the others slower by 1 to 8 %, with or without a gate.
constexpr bool wgmma_takes_gate(const WgmmaConfig& config) {
  return !config.sliced && (config.rows == 256 || config.tokens == 256);
}

// "rows=128 tokens=192 cluster=2", or the same with " split" or " sliced".
std::ostream& operator<<(std::ostream& out, const WgmmaConfig& config);
std::optional<WgmmaConfig> parse_wgmma_config(const std::string& text);

// Empty where the family takes the problem; otherwise why it does not.
std::string wgmma_why_not(const GemmProblem& problem, const Device& device);

// The same of a config, for a problem that the family takes.
std::string wgmma_config_why_not(const GemmProblem& problem, const WgmmaConfig& config,
                                 const Device& device);

// All configs that take it, the one that is guessed to be fastest first; none where the family
// does not.
std::vector<WgmmaConfig> wgmma_configs(const GemmProblem& problem, const Device& device);

// Of every config, at most. Launches that may run at once need workspaces of their own.
size_t wgmma_workspace_bytes(const Device& device);

// The workspace is all zero before its first launch, and may be null where config.split is false. m
// == 0 is a no-op. y may have a gate where wgmma_takes_gate, and n is a multiple of 16.
void wgmma_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
                const WgmmaConfig& config, void* workspace, const Launch& how);

// The exact group sums [m, n, group_count(k)] out of the same loop, for tests.
void wgmma_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                      const GemmProblem& problem, const WgmmaConfig& config, const Launch& how);

}  // namespace flexq_kernels::gpu
