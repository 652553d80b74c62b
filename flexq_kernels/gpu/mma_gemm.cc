// Which problems the mma family takes, its configs and the guess among them.
#include "flexq_kernels/gpu/mma_gemm.h"

#include <algorithm>
#include <sstream>

#include "flexq_kernels/gpu/checks.h"

namespace flexq_kernels::gpu {

namespace {

constexpr MmaConfig kConfigs[] = {{128, 4}, {128, 3}, {64, 4}, {64, 3}};
constexpr int64_t kMostRows = int64_t{1} << 30;  // of m and n: tiles past the end still fit an int

int64_t blocks(int64_t extent, int64_t size) { return (extent + size - 1) / size; }

// Of a block: the operands of a group, `stages` times.
size_t shared_bytes(const MmaConfig& config) {
  const int64_t tokens = config.tokens, row_tiles = 128 / kTileRows;
  return static_cast<size_t>(
      config.stages * (tokens * (kGroupSize + 4) + row_tiles * (kTileBytes + 2 * kTileRows)));
}

// How many blocks of 256 threads a multiprocessor holds: registers allow one of 128 tokens, two of
// 64.
int64_t resident(const MmaConfig& config, const Device& device) {
  const auto fit =
      static_cast<int64_t>(device.shared_per_multiprocessor / (shared_bytes(config) + 1024));
  return std::clamp<int64_t>(fit, 1, config.tokens == 64 ? 2 : 1);
}

// In units of a token of a tile: how long the last multiprocessor is busy.
double guessed_cost(const GemmProblem& problem, const MmaConfig& config, const Device& device) {
  const int64_t tiles = blocks(problem.n, 128) * blocks(problem.m, config.tokens);
  const int64_t at_once = resident(config, device);
  const int64_t waves = blocks(tiles, std::max<int64_t>(1, device.multiprocessors * at_once));
  return static_cast<double>(waves * at_once) * (config.tokens + 16) * (1 + 0.01 / config.stages);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const MmaConfig& config) {
  return out << "tokens=" << config.tokens << " stages=" << config.stages;
}

std::optional<MmaConfig> parse_mma_config(const std::string& text) {
  for (const MmaConfig& config : kConfigs) {
    std::ostringstream name;
    name << config;
    if (name.str() == text) return config;
  }
  return std::nullopt;
}

bool mma_has_config(const MmaConfig& config, const Device& device) {
  return std::find(std::begin(kConfigs), std::end(kConfigs), config) != std::end(kConfigs) &&
         shared_bytes(config) <= device.shared_per_block;
}

std::string mma_why_not(const GemmProblem& problem, const Device& device) {
  problem.validate();
  std::string reason = why_not_bits(problem);
  if (reason.empty()) reason = why_not_device(device);
  if (reason.empty() && (problem.m > kMostRows || problem.n > kMostRows ||
                         blocks(problem.m, 64) * blocks(problem.n, 128) > kMostRows)) {
    reason = "too many tiles";
  }
  return reason;
}

std::vector<MmaConfig> mma_configs(const GemmProblem& problem, const Device& device) {
  if (!mma_why_not(problem, device).empty()) return {};
  std::vector<MmaConfig> all;
  for (const MmaConfig& config : kConfigs) {
    if (shared_bytes(config) <= device.shared_per_block) all.push_back(config);
  }
  std::stable_sort(all.begin(), all.end(), [&](const MmaConfig& a, const MmaConfig& b) {
    return guessed_cost(problem, a, device) < guessed_cost(problem, b, device);
  });
  return all;
}

}  // namespace flexq_kernels::gpu
