// The stream family: what it takes, its configs, and the way to its kernels.
#include "flexq_kernels/gpu/stream_gemm.h"

#include <cstdio>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/stream_gemm_args.h"

namespace flexq_kernels::gpu {

namespace {

struct Candidate {
  int max_tokens;
  int resident;  // blocks of a multiprocessor
  StreamConfig config;
};

constexpr StreamKernel kDirect = StreamKernel::kDirect, kAsync = StreamKernel::kAsync,
                       kWide = StreamKernel::kWide;
// Of what fills the GPU's blocks equally well the first is the guess.
constexpr Candidate kCandidates[] = {
    {8, 4, {kDirect, 1, 2, 1, 0}},  {8, 3, {kDirect, 1, 3, 1, 0}}, {8, 5, {kDirect, 1, 1, 1, 0}},
    {8, 4, {kAsync, 1, 3, 1, 0}},   {8, 2, {kAsync, 2, 3, 1, 0}},  {16, 2, {kDirect, 1, 2, 1, 0}},
    {16, 3, {kDirect, 1, 1, 1, 0}}, {16, 2, {kAsync, 2, 3, 1, 0}}, {32, 2, {kWide, 8, 4, 1, 2}},
    {32, 2, {kWide, 8, 4, 2, 2}},   {32, 2, {kWide, 8, 4, 4, 2}},  {32, 2, {kWide, 8, 4, 1, 1}},
    {32, 2, {kWide, 8, 4, 2, 1}},   {32, 2, {kWide, 8, 4, 4, 1}},  {32, 1, {kWide, 16, 5, 1, 1}},
    {32, 1, {kWide, 16, 5, 2, 1}},  {32, 1, {kWide, 16, 5, 4, 1}}, {32, 2, {kAsync, 1, 3, 1, 0}},
    {32, 2, {kAsync, 2, 3, 1, 0}},  {64, 1, {kWide, 16, 3, 1, 1}}, {64, 1, {kWide, 16, 3, 2, 1}},
    {64, 1, {kWide, 16, 3, 4, 1}},  {64, 2, {kWide, 4, 4, 1, 1}},  {64, 2, {kWide, 4, 4, 1, 2}},
    {64, 2, {kWide, 4, 4, 2, 2}},   {64, 2, {kWide, 4, 4, 4, 2}},  {64, 2, {kWide, 4, 4, 4, 1}},
};

// Blocks by blocks that find room in the rounds that they take: 17 where 16 run at once are little.
double fill_of(const Candidate& candidate, const GemmProblem& problem, const Device& device) {
  const int64_t tiles = row_tiles(problem.n), each = candidate.config.tiles;
  if (candidate.config.kernel == kWide) return 0;
  const int64_t blocks = (tiles + each - 1) / each;
  const int64_t room = int64_t{candidate.resident} * device.multiprocessors;
  return static_cast<double>(blocks) / static_cast<double>((blocks + room - 1) / room * room);
}

bool fits_wide(const Candidate& candidate, const GemmProblem& problem, const Device& device) {
  const StreamConfig& config = candidate.config;
  if (config.split > 1 && device.capability() < 90) return false;
  const size_t bytes = stream_wide_shared_bytes(
      candidate.max_tokens, static_cast<int>(row_tiles(problem.n)), config, device);
  constexpr size_t kReserved = 1024;  // per block, by the system
  return bytes <= device.shared_per_block &&
         static_cast<size_t>(config.blocks) * (bytes + kReserved) <=
             device.shared_per_multiprocessor;
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
  return a.kernel == b.kernel && a.tiles == b.tiles && a.stages == b.stages && a.split == b.split &&
         a.blocks == b.blocks;
}

std::ostream& operator<<(std::ostream& out, const StreamConfig& config) {
  return out << "kernel=" << name_of(config.kernel) << " tiles=" << config.tiles
             << " stages=" << config.stages << " split=" << config.split
             << " blocks=" << config.blocks;
}

std::optional<StreamConfig> parse_stream_config(const std::string& text) {
  StreamConfig config;
  char kernel[8] = "";
  const int fields =
      std::sscanf(text.c_str(), "kernel=%7[a-z] tiles=%d stages=%d split=%d blocks=%d", kernel,
                  &config.tiles, &config.stages, &config.split, &config.blocks);
  config.kernel = std::string(kernel) == "async"  ? kAsync
                  : std::string(kernel) == "wide" ? kWide
                                                  : kDirect;
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
  double best = -1;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.max_tokens != tokens) continue;
    if (candidate.config.kernel == kWide && !fits_wide(candidate, problem, device)) continue;
    configs.push_back(candidate.config);
    const double fill = fill_of(candidate, problem, device);
    if (fill <= best) continue;
    best = fill;
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
