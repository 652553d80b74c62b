// W6Ax GEMM for a decode step: 1 to 32 tokens, the weight read once. Time is that of its bytes.
//
// Activations in CodeOrder::kFragment. A row of the output is summed in an order that k alone
// decides, whatever m, the device and the config: k is cut into eight chains of neighbouring
// groups, a chain adds its groups in order; chains 0-3 are added in order, 4-7 too, then the two.
// So a token has the same bits alone and in a batch, and all configs of all kernels agree.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

constexpr int64_t kStreamMaxTokens = 32;

enum class StreamKernel : uint8_t {
  kDirect,  // small blocks, weights go from memory to registers
  kAsync,   // the same through a ring of every warp in shared memory
  kWide,    // large blocks, whose warps share the tokens in shared memory
};

struct StreamConfig {
  StreamKernel kernel = StreamKernel::kDirect;
  int tiles = 0;   // of 16 rows that a block has; kWide: at most
  int stages = 0;  // of its ring, or in registers
  int split = 1;   // kWide: blocks of a cluster that share row tiles, a part of k each
};

bool operator==(const StreamConfig& a, const StreamConfig& b);
std::ostream& operator<<(std::ostream& out, const StreamConfig& config);

// What << prints: "kernel=direct tiles=1 stages=2 split=1"; none if it is anything else.
std::optional<StreamConfig> parse_stream_config(const std::string& text);

// Why the family does not take a problem; empty if it does.
std::string stream_why_not(const GemmProblem& problem, const Device& device);

// Configs worth a measurement, a good guess first. None for a problem that is not taken.
std::vector<StreamConfig> stream_configs(const GemmProblem& problem, const Device& device);

// Throw std::invalid_argument for a problem, operand or config that is not taken. m == 0 is a
// no-op.
void stream_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
                 const StreamConfig& config, const Launch& launch);

// The exact int32 group sums [m, n, group_count(k)] of the same inner loop.
void stream_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                       const GemmProblem& problem, const StreamConfig& config,
                       const Launch& launch);

}  // namespace flexq_kernels::gpu
