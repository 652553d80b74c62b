// The stream family: what it takes, its configs, and the way to its kernels.
#include "flexq_kernels/gpu/stream_gemm.h"

#include <cstdio>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/stream_gemm_args.h"

namespace flexq_kernels::gpu {

namespace {

constexpr int kMaxStages = 64;

struct Candidate {
  int max_tokens;
  StreamConfig config;
};

// For each number of tokens the first is the guess. Stages: what two blocks of a multiprocessor
// have room for, so that two rings overlap in a chain of programmatic launches; with 8 row tiles,
// or 6 of 64 tokens, a block has a multiprocessor's registers for itself. Limits: about 50 KB under
// way.
constexpr StreamKernel kBulk = StreamKernel::kBulk, kAsync = StreamKernel::kAsync;
constexpr Candidate kCandidates[] = {
    {8, {kBulk, 6, 1, 7, 4}},    {8, {kBulk, 6, 1, 7, 3}},   {8, {kBulk, 6, 1, 7, 6}},
    {8, {kBulk, 6, 1, 7, 0}},    {8, {kBulk, 6, 2, 14, 8}},  {8, {kAsync, 6, 1, 6, 0}},
    {16, {kBulk, 4, 1, 7, 4}},   {16, {kBulk, 4, 1, 7, 0}},  {16, {kBulk, 6, 2, 14, 8}},
    {16, {kBulk, 6, 2, 14, 12}}, {16, {kAsync, 3, 1, 6, 0}}, {32, {kBulk, 4, 2, 12, 8}},
    {32, {kBulk, 4, 2, 12, 0}},  {32, {kBulk, 8, 2, 28, 8}}, {32, {kAsync, 4, 1, 5, 0}},
    {64, {kBulk, 4, 4, 24, 16}}, {64, {kBulk, 4, 4, 24, 0}}, {64, {kBulk, 8, 4, 56, 16}},
    {64, {kBulk, 6, 2, 28, 8}},  {64, {kAsync, 2, 1, 4, 0}},
};

const char* name_of(StreamKernel kernel) { return kernel == kBulk ? "bulk" : "async"; }

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
  args.stages = config.stages;
  args.limit = config.limit == 0 ? config.stages : config.limit;
  args.sums = sums;
  // A warp takes a stage while it still has the one before: two must be allowed to be under way.
  FLEXQ_CHECK(config.stages >= 3 && config.stages <= kMaxStages && config.limit != 1 &&
                  config.limit >= 0 && config.limit <= config.stages,
              config, ": needs 3 to ", kMaxStages, " stages and a limit of 0 or of 2 up to those");
  FLEXQ_CHECK(config.kernel == kAsync || current_device().capability() >= 90, config,
              ": bulk copies need compute capability 9.0, this GPU has ",
              current_device().capability(), " / 10");
  const bool launched = config.kernel == kBulk ? launch_stream_bulk(args, config, launch)
                                               : launch_stream_async(args, config, launch);
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
  return a.kernel == b.kernel && a.tiles == b.tiles && a.split == b.split && a.stages == b.stages &&
         a.limit == b.limit;
}

std::ostream& operator<<(std::ostream& out, const StreamConfig& config) {
  return out << "kernel=" << name_of(config.kernel) << " tiles=" << config.tiles
             << " split=" << config.split << " stages=" << config.stages
             << " limit=" << config.limit;
}

std::optional<StreamConfig> parse_stream_config(const std::string& text) {
  StreamConfig config;
  char kernel[8] = "";
  const int fields =
      std::sscanf(text.c_str(), "kernel=%7[a-z] tiles=%d split=%d stages=%d limit=%d", kernel,
                  &config.tiles, &config.split, &config.stages, &config.limit);
  config.kernel = std::string(kernel) == "async" ? kAsync : kBulk;
  if (fields != 5 || detail::join(config) != text) return std::nullopt;
  return config;
}

std::string stream_why_not(const GemmProblem& problem, const Device& device) {
  if (problem.act_bits != 6 && problem.act_bits != 8) {
    return detail::join(problem, ": the stream family takes 6- and 8-bit activations");
  }
  if (problem.m > kStreamMaxTokens) {
    return detail::join(problem, ": the stream family takes up to ", kStreamMaxTokens, " tokens");
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
  const int64_t tokens = problem.m <= 8 ? 8 : problem.m <= 16 ? 16 : problem.m <= 32 ? 32 : 64;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.max_tokens != tokens) continue;
    if (candidate.config.kernel == kBulk && device.capability() < 90) continue;
    configs.push_back(candidate.config);
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
