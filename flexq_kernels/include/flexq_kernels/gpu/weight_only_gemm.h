// W6A16 GEMM on a GPU: six-bit weights and 1 to 64 tokens of fp16 or bf16, as they are. The weight
// is read once, and time is that of its bytes.
//
//   y[m, n] = sum over groups of  scale[n, g] * sum over k of group g of  x[m, k] * code[n, k]
//
// Codes are exact in both types; tensor cores add a group's products in fp32, the scale multiplies
// the sum of a group. A row of the output is summed in an order that k alone decides, whatever m,
// the device and the config: k is cut into eight chains of neighbouring groups, a chain adds its
// groups in order, then chains 0-3 and 4-7 apart, then both. So a token has the same bits alone and
// in a batch. More tokens: dequantize.h and a GEMM of floats.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/gpu/stream_gemm.h"

namespace flexq_kernels::gpu {

constexpr int64_t kWeightOnlyMaxTokens = 64;
constexpr int64_t kWeightOnlyMaxDepth = int64_t{1} << 24;  // 64 tokens of it: offsets of 32 bits

// x [m][k], row by row without padding. Nothing past k is read. Fastest where k is a multiple of 4.
struct FloatActivations {
  const void* values = nullptr;
  FloatType type = FloatType::kFp16;  // or kBf16
};

struct WeightOnlyConfig {
  StreamKernel kernel = StreamKernel::kDirect;  // the way of the weights, as in the stream family
  int tiles = 0;                                // of 16 rows that a block has
  int stages = 0;                               // that a warp has in its ring or in registers
};

bool operator==(const WeightOnlyConfig& a, const WeightOnlyConfig& b);
std::ostream& operator<<(std::ostream& out, const WeightOnlyConfig& config);

// What << prints: "kernel=direct tiles=1 stages=2"; none if it is anything else.
std::optional<WeightOnlyConfig> parse_weight_only_config(const std::string& text);

// Why the family does not take a problem (its act_bits must be 16); empty if it does.
std::string weight_only_why_not(const GemmProblem& problem, const Device& device);

// Configs worth a measurement, a good guess first. None for a problem that is not taken.
std::vector<WeightOnlyConfig> weight_only_configs(const GemmProblem& problem, const Device& device);

// y: of the type of x, or fp32. Throws std::invalid_argument for a problem, operand or config that
// is not taken. m == 0 is a no-op.
void weight_only_gemm(const Output& y, const FloatActivations& x, const Weight& w,
                      const GemmProblem& problem, const WeightOnlyConfig& config,
                      const Launch& launch);

}  // namespace flexq_kernels::gpu
