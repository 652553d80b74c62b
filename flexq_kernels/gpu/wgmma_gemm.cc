// Which problems the wgmma family takes, and its configs.
#include "flexq_kernels/gpu/wgmma_gemm.h"

#include <algorithm>
#include <sstream>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/wgmma_gemm_guess.h"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

namespace {

std::vector<WgmmaConfig> all_configs() {
  std::vector<WgmmaConfig> all;
  for (const auto& tile : kWgmmaTiles) {
    for (const int cluster : {2, 1}) {
      for (const bool split : {false, true}) {
        all.push_back({tile.rows, tile.tokens, cluster, split, false});
      }
    }
  }
  for (const auto& tile : kWgmmaSharedTiles) {
    for (int slices = 1; slices <= kWgmmaMostSlices; ++slices) {
      all.push_back({tile.rows, tile.tokens, slices, false, true});
    }
  }
  for (const auto& tile : kWgmmaTiles) {
    for (int slices = 2; slices <= kWgmmaMostSlices && tile.tokens > kWgmmaSharedTokens; ++slices) {
      all.push_back({tile.rows, tile.tokens, slices, false, true});
    }
  }
  return all;
}

constexpr int64_t kMostRows = int64_t{1} << 30;  // of m and n: tiles past the end still fit an int

int64_t blocks(int64_t extent, int64_t size) { return (extent + size - 1) / size; }

}  // namespace

WgmmaSchedule wgmma_schedule(const GemmProblem& problem, const WgmmaConfig& config,
                             const Device& device) {
  WgmmaSchedule schedule;
  schedule.groups = static_cast<int>(group_count(problem.k));
  schedule.tiles = static_cast<int>(blocks(problem.n, config.rows * config.cluster) *
                                    blocks(problem.m, config.tokens));
  schedule.clusters =
      std::max(1, std::min(schedule.tiles, device.multiprocessors / config.cluster));
  const int rest = schedule.tiles % schedule.clusters;
  constexpr int kMostGroups = 1 << 14;  // their products with clusters stay small
  if (config.split && schedule.tiles > schedule.clusters && rest > 0 &&
      schedule.groups <= kMostGroups) {
    schedule.split = schedule.clusters + rest;
  }
  return schedule;
}

std::ostream& operator<<(std::ostream& out, const WgmmaConfig& config) {
  return out << "rows=" << config.rows << " tokens=" << config.tokens
             << " cluster=" << config.cluster << (config.split ? " split" : "")
             << (config.sliced ? " sliced" : "");
}

std::optional<WgmmaConfig> parse_wgmma_config(const std::string& text) {
  for (const WgmmaConfig& config : all_configs()) {
    std::ostringstream name;
    name << config;
    if (name.str() == text) return config;
  }
  return std::nullopt;
}

bool wgmma_has_config(const WgmmaConfig& config) {
  const std::vector<WgmmaConfig> all = all_configs();
  return std::find(all.begin(), all.end(), config) != all.end();
}

size_t wgmma_workspace_bytes(const Device& device) {
  constexpr size_t kMostOutputs = size_t{256} * 128;  // of a tile
  return static_cast<size_t>(device.multiprocessors) *
         (kWgmmaFlagBytes + kMostOutputs * sizeof(float));
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
  if (problem.m > kMostRows || problem.n > kMostRows ||
      blocks(problem.m, 64) * blocks(problem.n, 128) > kMostRows) {
    return detail::join("too many tiles: ", problem);
  }
  return "";
}

std::string wgmma_config_why_not(const GemmProblem& problem, const WgmmaConfig& config,
                                 const Device& device) {
  if (config.split && wgmma_schedule(problem, config, device).split == 0) {
    return "no tile is to be cut";
  }
  if (!config.sliced) return "";
  if (problem.m > config.tokens) {
    return detail::join("its slices are of ", config.tokens, " tokens at most");
  }
  const int narrower = config.tokens > 128 ? 128 : kWgmmaSharedTokens;
  if (config.tokens > kWgmmaSharedTokens && problem.m <= narrower) {
    return detail::join("a tile of ", narrower, " tokens is enough");
  }
  const int64_t groups = group_count(problem.k);
  if (config.cluster > groups) {
    return detail::join("K has ", groups, " groups, fewer than slices");
  }
  return "";
}

std::vector<WgmmaConfig> wgmma_configs(const GemmProblem& problem, const Device& device) {
  if (!wgmma_why_not(problem, device).empty()) return {};
  std::vector<WgmmaConfig> all;
  for (const WgmmaConfig& config : all_configs()) {
    if (wgmma_config_why_not(problem, config, device).empty()) all.push_back(config);
  }
  std::stable_sort(all.begin(), all.end(), [&](const WgmmaConfig& a, const WgmmaConfig& b) {
    return wgmma_guessed_us(problem, a, device) < wgmma_guessed_us(problem, b, device);
  });
  return all;
}

}  // namespace flexq_kernels::gpu
