// The weight-only family: what it takes, its configs, and the way to its kernels.
#include "flexq_kernels/gpu/weight_only_gemm.h"

#include <cstdio>

#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/weight_only_gemm_args.h"

namespace flexq_kernels::gpu {

namespace {

struct Candidate {
  int max_tokens;
  bool any_depth;  // also where k is no multiple of 4
  WeightOnlyConfig config;
};

// For each number of tokens the first is the guess. Of more tokens a block has more row tiles:
// each block reads all of x.
constexpr StreamKernel kDirect = StreamKernel::kDirect, kAsync = StreamKernel::kAsync;
constexpr Candidate kCandidates[] = {
    {8, false, {kDirect, 1, 2}}, {8, false, {kDirect, 1, 1}}, {8, false, {kAsync, 1, 3}},
    {8, true, {kAsync, 1, 4}},   {8, false, {kAsync, 2, 3}},  {16, false, {kAsync, 2, 3}},
    {16, true, {kAsync, 1, 4}},  {16, false, {kAsync, 4, 2}}, {16, false, {kDirect, 1, 1}},
    {32, false, {kAsync, 4, 2}}, {32, false, {kAsync, 2, 3}}, {32, true, {kAsync, 1, 3}},
    {64, false, {kAsync, 2, 3}}, {64, true, {kAsync, 1, 4}},
};

// Of a block: the sums of the chains (stream_gemm_finish.cuh), and the rings of the warps.
size_t shared_bytes(const Candidate& candidate) {
  const WeightOnlyConfig& config = candidate.config;
  const int slot = config.kernel == kAsync ? config.tiles * (kTileBytes + 2 * kTileRows) : 0;
  const int partial = candidate.max_tokens * (kTileRows + 4) * static_cast<int>(sizeof(float));
  return static_cast<size_t>(kStreamChains * (config.stages * slot + partial));
}

const char* name_of(StreamKernel kernel) { return kernel == kDirect ? "direct" : "async"; }

bool is_half(FloatType type) { return type == FloatType::kFp16 || type == FloatType::kBf16; }

}  // namespace

bool operator==(const WeightOnlyConfig& a, const WeightOnlyConfig& b) {
  return a.kernel == b.kernel && a.tiles == b.tiles && a.stages == b.stages;
}

std::ostream& operator<<(std::ostream& out, const WeightOnlyConfig& config) {
  return out << "kernel=" << name_of(config.kernel) << " tiles=" << config.tiles
             << " stages=" << config.stages;
}

std::optional<WeightOnlyConfig> parse_weight_only_config(const std::string& text) {
  WeightOnlyConfig config;
  char kernel[8] = "";
  const int fields = std::sscanf(text.c_str(), "kernel=%7[a-z] tiles=%d stages=%d", kernel,
                                 &config.tiles, &config.stages);
  config.kernel = std::string(kernel) == "async" ? kAsync : kDirect;
  if (fields != 3 || detail::join(config) != text) return std::nullopt;
  return config;
}

std::string weight_only_why_not(const GemmProblem& problem, const Device& device) {
  if (problem.act_bits != 16) {
    return detail::join("its activations have 16 bits, not ", problem.act_bits);
  }
  if (problem.m > kWeightOnlyMaxTokens) {
    return detail::join("it takes up to ", kWeightOnlyMaxTokens, " tokens, not ", problem.m);
  }
  if (problem.k > kWeightOnlyMaxDepth) {
    return detail::join("it takes k up to ", kWeightOnlyMaxDepth, ", not ", problem.k);
  }
  return why_not_device(device);
}

std::vector<WeightOnlyConfig> weight_only_configs(const GemmProblem& problem,
                                                  const Device& device) {
  std::vector<WeightOnlyConfig> configs;
  if (!weight_only_why_not(problem, device).empty()) return configs;
  const int64_t tokens = problem.m <= 8 ? 8 : problem.m <= 16 ? 16 : problem.m <= 32 ? 32 : 64;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.max_tokens != tokens) continue;
    if (problem.k % 4 != 0 && !candidate.any_depth) continue;
    if (shared_bytes(candidate) > device.shared_per_block) continue;
    configs.push_back(candidate.config);
  }
  return configs;
}

void weight_only_gemm(const Output& y, const FloatActivations& x, const Weight& w,
                      const GemmProblem& problem, const WeightOnlyConfig& config,
                      const Launch& launch) {
  if (!has_work(problem, weight_only_why_not)) return;
  FLEXQ_CHECK(is_half(x.type), problem, ": activations must be fp16 or bf16, not fp32");
  FLEXQ_CHECK(y.type == FloatType::kFp32 || y.type == x.type, problem,
              ": the output must be fp32 or of the type of the activations");
  check_pointer(x.values, "activations");
  check_weight(w);
  check_output(y);
  WeightOnlyArgs args;
  args.stream.y = y;
  args.stream.w = w;
  args.stream.m = static_cast<int>(problem.m);
  args.stream.n = static_cast<int>(problem.n);
  args.stream.groups = static_cast<int>(group_count(problem.k));
  args.stream.row_tiles = static_cast<int>(row_tiles(problem.n));
  args.x = x.values;
  args.k = static_cast<int>(problem.k);
  const bool launched = x.type == FloatType::kFp16 ? launch_weight_only_fp16(args, config, launch)
                                                   : launch_weight_only_bf16(args, config, launch);
  FLEXQ_CHECK(launched, problem, ": no kernel for ", config);
}

}  // namespace flexq_kernels::gpu
