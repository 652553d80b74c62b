// Which problems the wgmma family takes, its configs and the guess among them.
#include "flexq_kernels/gpu/wgmma_gemm.h"

#include <algorithm>
#include <sstream>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

namespace {

constexpr struct {
  int rows, tokens;
} kTiles[] = {{256, 128}, {192, 128}, {128, 256}, {128, 192}, {128, 128}, {128, 64}};

constexpr int kFewTokens = 64;  // of sliced tiles up to which two blocks share a multiprocessor

std::vector<WgmmaConfig> all_configs() {
  std::vector<WgmmaConfig> all;
  for (const auto& tile : kTiles) {
    for (const int cluster : {2, 1}) {
      for (const bool split : {false, true}) {
        all.push_back({tile.rows, tile.tokens, cluster, split, false});
      }
    }
  }
  for (const int tokens : {32, kFewTokens}) {
    for (int slices = 1; slices <= kWgmmaMostSlices; ++slices) {
      all.push_back({128, tokens, slices, false, true});
    }
  }
  for (const auto& tile : kTiles) {
    for (int slices = 2; slices <= kWgmmaMostSlices && tile.tokens > kFewTokens; ++slices) {
      all.push_back({tile.rows, tile.tokens, slices, false, true});
    }
  }
  return all;
}

constexpr int64_t kMostRows = int64_t{1} << 30;  // of m and n: tiles past the end still fit an int

int64_t blocks(int64_t extent, int64_t size) { return (extent + size - 1) / size; }

// The clusters of `blocks` blocks, one a multiprocessor, that surely run at once: each lies in one
// of the GPU's parts, which have 16 multiprocessors or a few more.
int64_t clusters_at_once(int blocks, const Device& device) {
  return std::max(1, device.multiprocessors / 16 * (16 / blocks));
}

// The same for slices, each of which takes about two groups longer than its own.
double sliced_cost(const GemmProblem& problem, const WgmmaConfig& config, const Device& device) {
  const int64_t groups = group_count(problem.k), tiles = blocks(problem.n, config.rows);
  const int64_t waves = config.tokens <= kFewTokens
                            ? blocks(tiles * config.cluster, 2 * device.multiprocessors)
                            : blocks(tiles, clusters_at_once(config.cluster, device));
  const auto steps = static_cast<double>(blocks(groups, config.cluster) + 2);
  return static_cast<double>(waves) * steps / static_cast<double>(groups) * config.rows / 128 *
         (config.tokens + 24);
}

// In units of a token of a tile: how long the last block is busy. A tile costs its tokens and the
// unpacking of its weights; blocks that copy for themselves wait a little longer.
double guessed_cost(const GemmProblem& problem, const WgmmaConfig& config, const Device& device) {
  if (config.sliced) return sliced_cost(problem, config, device);
  const WgmmaSchedule schedule = wgmma_schedule(problem, config, device);
  const double waves = schedule.split > 0
                           ? static_cast<double>(schedule.tiles) / schedule.clusters + 0.05
                           : static_cast<double>(blocks(schedule.tiles, schedule.clusters));
  return waves * config.rows / 128 * (config.tokens + 24) * (config.cluster == 1 ? 1.05 : 1.0);
}

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
  const int narrower = config.tokens > 128 ? 128 : kFewTokens;
  if (config.tokens > kFewTokens && problem.m <= narrower) {
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
    return guessed_cost(problem, a, device) < guessed_cost(problem, b, device);
  });
  return all;
}

}  // namespace flexq_kernels::gpu
