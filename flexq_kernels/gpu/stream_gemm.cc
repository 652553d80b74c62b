// The stream family: what it takes, its configs, and the way to its kernels.
#include "flexq_kernels/gpu/stream_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "flexq_kernels/check.h"
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
    {8, 4, {kAsync, 1, 3, 1}},  {8, 3, {kDirect, 1, 3, 1}},  {8, 5, {kDirect, 1, 1, 1}},
    {8, 4, {kDirect, 1, 2, 1}}, {16, 2, {kDirect, 1, 2, 1}}, {16, 3, {kDirect, 1, 1, 1}},
    {16, 2, {kAsync, 2, 3, 1}}, {32, 2, {kWide, 8, 4, 1}},   {32, 2, {kWide, 8, 4, 2}},
    {32, 2, {kAsync, 2, 3, 1}}, {32, 2, {kAsync, 1, 3, 1}},  {32, 2, {kDirect, 1, 2, 1}},
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
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  FLEXQ_CHECK(x.order == CodeOrder::kFragment, problem,
              ": activation codes in natural order; the stream family takes CodeOrder::kFragment");
  FLEXQ_CHECK(x.codes != nullptr && x.scales != nullptr && aligned(x.codes) && aligned(x.scales),
              problem, ": activations must be on 16-byte boundaries, codes ",
              static_cast<const void*>(x.codes), ", scales ", x.scales);
  FLEXQ_CHECK(x.scale_stride >= problem.m && x.scale_stride % 4 == 0, problem,
              ": activation scales with stride ", x.scale_stride,
              ", which must be a multiple of 4 and at least m");
  FLEXQ_CHECK(w.codes != nullptr && w.scales != nullptr && aligned(w.codes) && aligned(w.scales),
              problem, ": weights must be on 16-byte boundaries, codes ",
              static_cast<const void*>(w.codes), ", scales ", w.scales);
}

void check_output(const Output& y, const GemmProblem& problem) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  FLEXQ_CHECK(y.values != nullptr && aligned(y.values) && aligned(y.bias) && aligned(y.residual),
              problem, ": output at ", y.values, ", bias at ", y.bias, ", residual at ", y.residual,
              "; all must be on 16-byte boundaries");
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

bool check_problem(const GemmProblem& problem) {
  problem.validate();
  if (problem.m == 0) return false;
  const std::string why = stream_why_not(problem, current_device());
  FLEXQ_CHECK(why.empty(), why);
  return true;
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
  if (problem.act_bits != 6 && problem.act_bits != 8) {
    return detail::join(problem, ": the stream family takes 6- and 8-bit activations");
  }
  if (problem.m > kStreamMaxTokens) {
    return detail::join(problem, ": the stream family takes up to ", kStreamMaxTokens, " tokens");
  }
  if (problem.k > kMaxK) {
    return detail::join(problem, ": the stream family takes k up to ", kMaxK);
  }
  if (device.capability() < 80) {
    return detail::join(problem, ": the stream family needs compute capability 8.0, not ",
                        device.major, ".", device.minor);
  }
  return "";
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
  if (!check_problem(problem)) return;
  check_operands(x, w, problem);
  check_output(y, problem);
  launch_stream(y, nullptr, x, w, problem, config, launch);
}

void stream_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                       const GemmProblem& problem, const StreamConfig& config,
                       const Launch& launch) {
  if (!check_problem(problem)) return;
  check_operands(x, w, problem);
  FLEXQ_CHECK(sums != nullptr, problem, ": no memory for group sums");
  launch_stream({}, sums, x, w, problem, config, launch);
}

}  // namespace flexq_kernels::gpu
