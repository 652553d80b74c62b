// Which problems the wgmma family takes, its configs and the guess among them.
#include "flexq_kernels/gpu/wgmma_gemm.h"

#include <algorithm>
#include <sstream>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

namespace {

constexpr WgmmaConfig kConfigs[] = {{192, 2, false}, {192, 2, true},  {192, 1, false},
                                    {192, 1, true},  {128, 2, false}, {128, 2, true},
                                    {128, 1, false}, {128, 1, true},  {64, 2, false},
                                    {64, 2, true},   {64, 1, false},  {64, 1, true}};
constexpr int64_t kMostRows = int64_t{1} << 30;  // of m and n: tiles past the end still fit an int

int64_t blocks(int64_t extent, int64_t size) { return (extent + size - 1) / size; }

// In units of a token of a tile: how long the last block is busy. A tile costs its tokens and the
// unpacking of its weights; blocks that copy for themselves wait a little longer.
double guessed_cost(const GemmProblem& problem, const WgmmaConfig& config, const Device& device) {
  const WgmmaSchedule schedule = wgmma_schedule(problem, config, device);
  const double waves = schedule.split > 0
                           ? static_cast<double>(schedule.tiles) / schedule.clusters + 0.05
                           : static_cast<double>(blocks(schedule.tiles, schedule.clusters));
  return waves * (config.tokens + 24) * (config.cluster == 1 ? 1.05 : 1.0);
}

}  // namespace

WgmmaSchedule wgmma_schedule(const GemmProblem& problem, const WgmmaConfig& config,
                             const Device& device) {
  WgmmaSchedule schedule;
  schedule.groups = static_cast<int>(group_count(problem.k));
  schedule.tiles = static_cast<int>(blocks(problem.n, kWgmmaRows * config.cluster) *
                                    blocks(problem.m, config.tokens));
  schedule.clusters =
      std::min(schedule.tiles, std::max(1, device.multiprocessors / config.cluster));
  const int rest = schedule.tiles % schedule.clusters;
  constexpr int kMostGroups = 1 << 14;  // their products with clusters stay small
  if (config.split && schedule.tiles > schedule.clusters && rest > 0 &&
      schedule.groups <= kMostGroups) {
    schedule.split = schedule.clusters + rest;
  }
  return schedule;
}

std::ostream& operator<<(std::ostream& out, const WgmmaConfig& config) {
  return out << "tokens=" << config.tokens << " cluster=" << config.cluster
             << (config.split ? " split" : "");
}

std::optional<WgmmaConfig> parse_wgmma_config(const std::string& text) {
  for (const WgmmaConfig& config : kConfigs) {
    std::ostringstream name;
    name << config;
    if (name.str() == text) return config;
  }
  return std::nullopt;
}

bool wgmma_has_config(const WgmmaConfig& config) {
  return std::find(std::begin(kConfigs), std::end(kConfigs), config) != std::end(kConfigs);
}

size_t wgmma_workspace_bytes(const Device& device) {
  return static_cast<size_t>(device.multiprocessors) *
         (kWgmmaFlagBytes + size_t{kWgmmaRows} * 192 * sizeof(float));
}

std::string wgmma_why_not(const GemmProblem& problem, const Device& device) {
  problem.validate();
  if (problem.act_bits != 6 && problem.act_bits != 8) {
    return detail::join("its activations have 6 or 8 bits, not ", problem.act_bits);
  }
  if (device.capability() != 90) {
    return detail::join("wgmma needs compute capability 9.0, and this GPU has ", device.major, ".",
                        device.minor);
  }
  if (!FLEXQ_KERNELS_SM90A) return "this build has no code for sm_90a";
  if (problem.m < 1 || problem.n < 1) {
    return detail::join("it needs at least one token and one row: ", problem);
  }
  if (problem.m > kMostRows || problem.n > kMostRows ||
      blocks(problem.m, 64) * blocks(problem.n, 128) > kMostRows) {
    return detail::join("too many tiles: ", problem);
  }
  return "";
}

std::vector<WgmmaConfig> wgmma_configs(const GemmProblem& problem, const Device& device) {
  if (!wgmma_why_not(problem, device).empty()) return {};
  std::vector<WgmmaConfig> all;
  for (const WgmmaConfig& config : kConfigs) {
    if (!config.split || wgmma_schedule(problem, config, device).split > 0) all.push_back(config);
  }
  std::stable_sort(all.begin(), all.end(), [&](const WgmmaConfig& a, const WgmmaConfig& b) {
    return guessed_cost(problem, a, device) < guessed_cost(problem, b, device);
  });
  return all;
}

}  // namespace flexq_kernels::gpu
