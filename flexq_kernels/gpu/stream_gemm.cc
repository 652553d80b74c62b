// The stream family: what it takes, its configs, and the way to its kernels.
#include "flexq_kernels/gpu/stream_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/stream_gemm_args.h"

namespace flexq_kernels::gpu {

namespace {

constexpr int64_t kMaxK = 1 << 25;  // offsets into x have 32 bits

struct Candidate {
  int max_tokens;
  int resident;  // blocks of a multiprocessor
  StreamConfig config;
};

constexpr StreamKernel kDirect = StreamKernel::kDirect, kAsync = StreamKernel::kAsync,
                       kWide = StreamKernel::kWide;
constexpr Candidate kCandidates[] = {
    {8, 4, {kAsync, 1, 3, 1}},   {8, 3, {kDirect, 1, 3, 1}}, {8, 5, {kDirect, 1, 1, 1}},
    {8, 4, {kDirect, 1, 2, 1}},  {16, 2, {kAsync, 2, 3, 1}}, {16, 3, {kDirect, 1, 1, 1}},
    {16, 2, {kDirect, 1, 2, 1}}, {32, 2, {kWide, 8, 4, 1}},  {32, 2, {kWide, 8, 4, 2}},
    {32, 2, {kAsync, 2, 3, 1}},  {32, 2, {kAsync, 1, 3, 1}}, {32, 2, {kDirect, 1, 2, 1}},
};

// How good a guess is: blocks by blocks that the rounds which they take have room for. 17 are a bad
// fit where 16 run at once. Blocks of kWide are as many as fit, and better than others where each
// has four row tiles or more to share tokens.
double fit_of(const Candidate& candidate, const GemmProblem& problem, const Device& device) {
  const StreamConfig& config = candidate.config;
  const auto tiles = static_cast<double>(row_tiles(problem.n));
  const double room = candidate.resident * std::max(device.multiprocessors, 1);
  if (config.kernel == kWide) return tiles * config.split >= 4 * room ? 2 : 0;
  const double rounds = std::ceil(tiles / config.tiles) / room;
  return rounds / std::ceil(rounds);
}

const char* name_of(StreamKernel kernel) {
  return kernel == kDirect ? "direct" : kernel == kAsync ? "async" : "wide";
}

void check_operands(const Activations& x, const Weight& w, const GemmProblem& problem) {
  FLEXQ_CHECK(x.order == CodeOrder::kFragment, problem,
              ": activation codes in natural order; the stream family takes CodeOrder::kFragment");
  check_activations(x, problem);
  constexpr int64_t kMostScales = INT32_MAX;  // offsets into them have 32 bits
  FLEXQ_CHECK(x.scale_stride <= kMostScales / group_count(problem.k), problem,
              ": activation scales with stride ", x.scale_stride,
              "; the stream family takes up to ", kMostScales / group_count(problem.k),
              " for so many groups");
  check_weight(w);
}

void launch_stream(const Output& y, int32_t* sums, const Activations& x, const Weight& w,
                   const GemmProblem& problem, const StreamConfig& config, const Launch& launch) {
  StreamArgs args;
  args.y = y;
  args.x = x;
  args.w = w;
  args.m = static_cast<int>(problem.m);
  args.n = static_cast<int>(problem.n);
  args.groups = static_cast<int>(group_count(problem.k));
  args.row_tiles = static_cast<int>(row_tiles(problem.n));
  args.split = config.split;
  args.sums = sums;
  const bool launched = config.kernel == kWide ? launch_stream_wide(args, config, launch)
                                               : launch_stream_narrow(args, config, launch);
  FLEXQ_CHECK(launched, problem, ": no kernel for ", config);
}

}  // namespace

bool operator==(const StreamConfig& a, const StreamConfig& b) {
  return a.kernel == b.kernel && a.tiles == b.tiles && a.stages == b.stages && a.split == b.split;
}

std::ostream& operator<<(std::ostream& out, const StreamConfig& config) {
  return out << "kernel=" << name_of(config.kernel) << " tiles=" << config.tiles
             << " stages=" << config.stages << " split=" << config.split;
}

std::optional<StreamConfig> parse_stream_config(const std::string& text) {
  StreamConfig config;
  char kernel[8] = "";
  const int fields = std::sscanf(text.c_str(), "kernel=%7[a-z] tiles=%d stages=%d split=%d", kernel,
                                 &config.tiles, &config.stages, &config.split);
  config.kernel = std::string(kernel) == "async"  ? kAsync
                  : std::string(kernel) == "wide" ? kWide
                                                  : kDirect;
  if (fields != 4 || detail::join(config) != text) return std::nullopt;
  return config;
}

std::string stream_why_not(const GemmProblem& problem, const Device& device) {
  std::string reason = why_not_bits(problem);
  if (reason.empty()) reason = why_not_device(device);
  if (reason.empty() && problem.m > kStreamMaxTokens) {
    reason = detail::join("it takes up to ", kStreamMaxTokens, " tokens, not ", problem.m);
  }
  if (reason.empty() && problem.k > kMaxK) {
    reason = detail::join("it takes k up to ", kMaxK, ", not ", problem.k);
  }
  return reason;
}

std::vector<StreamConfig> stream_configs(const GemmProblem& problem, const Device& device) {
  std::vector<StreamConfig> configs;
  if (!stream_why_not(problem, device).empty()) return configs;
  const int64_t tokens = problem.m <= 8 ? 8 : problem.m <= 16 ? 16 : 32;
  double best = -1;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.max_tokens != tokens) continue;
    if (candidate.config.kernel == kWide && !wide_fits(candidate.config, device)) continue;
    if (candidate.config.split > 1 && !FLEXQ_KERNELS_SM90) continue;  // clusters
    configs.push_back(candidate.config);
    const double fit = fit_of(candidate, problem, device);
    if (fit <= best) continue;  // of equally good ones the first is the guess
    best = fit;
    std::swap(configs.front(), configs.back());
  }
  return configs;
}

void stream_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
                 const StreamConfig& config, const Launch& launch) {
  if (!has_work(problem, stream_why_not)) return;
  check_operands(x, w, problem);
  check_output(y);
  launch_stream(y, nullptr, x, w, problem, config, launch);
}

void stream_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                       const GemmProblem& problem, const StreamConfig& config,
                       const Launch& launch) {
  if (!has_work(problem, stream_why_not)) return;
  check_operands(x, w, problem);
  check_pointer(sums, "group sums");
  launch_stream({}, sums, x, w, problem, config, launch);
}

}  // namespace flexq_kernels::gpu
