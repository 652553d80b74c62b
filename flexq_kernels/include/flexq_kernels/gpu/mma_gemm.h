// W6Ax GEMM of many tokens with mma.sync (sm_80 and later): weights are unpacked into the A
// operand, tokens come from shared memory by ldmatrix. Activations in CodeOrder::kNatural. A row's
// sum goes over its groups in ascending order in every config, so a row has the same bits alone and
// in any batch, and those of the wgmma family.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// A block computes 128 rows x `tokens`, with `stages` groups of its operands in shared memory.
struct MmaConfig {
  int tokens = 128;  // 64 or 128
  int stages = 3;    // 3 or 4

  bool operator==(const MmaConfig& other) const {
    return tokens == other.tokens && stages == other.stages;
  }
};

std::ostream& operator<<(std::ostream& out, const MmaConfig& config);  // "tokens=128 stages=3"
std::optional<MmaConfig> parse_mma_config(const std::string& text);

// Empty where the family takes the problem; otherwise why it does not.
std::string mma_why_not(const GemmProblem& problem, const Device& device);

// The configs that this GPU has shared memory for, the one that is guessed to be fastest first;
// none where the problem is not taken.
std::vector<MmaConfig> mma_configs(const GemmProblem& problem, const Device& device);

// m == 0 is a no-op.
void mma_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
              const MmaConfig& config, const Launch& how);

// The exact group sums [m, n, group_count(k)] out of the same loop, for tests.
void mma_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                    const GemmProblem& problem, const MmaConfig& config, const Launch& how);

}  // namespace flexq_kernels::gpu
