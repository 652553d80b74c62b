// The time of a product: that of the groups of the block with most of them, and of what comes
// before and behind. Constants are fitted to an H200 (docs/results/h200/w6ax-gemm.md, "The
// default"); an H100 has the same multiprocessors and clocks, and bytes of weights are the same for
// all configs.
#include "flexq_kernels/gpu/wgmma_gemm_guess.h"

#include <algorithm>
#include <iterator>

#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

namespace {

constexpr double kWeightUs = 0.49;     // of a group of 128 rows from memory: 3.4 TB/s in all
constexpr double kFillUs = 2.0;        // to the first group, where all multiprocessors wait for one
constexpr double kOutputUs = 1.47e-4;  // from the last product to the store: a tile's, each output
constexpr double kCutTiles = 0.5;      // as many tiles' ends: sums that are handed over (`split`)
constexpr double kAlone = 1.02;        // times the groups of a block that copies all its tokens

int64_t blocks(int64_t extent, int64_t size) { return (extent + size - 1) / size; }

double end_us(const WgmmaConfig& config) { return kOutputUs * config.rows * config.tokens; }

template <size_t kCount>
double group_us(const WgmmaTileTime (&tiles)[kCount], const WgmmaConfig& config) {
  const auto* tile = std::find_if(std::begin(tiles), std::end(tiles), [&](const auto& one) {
    return one.rows == config.rows && one.tokens == config.tokens;
  });
  return tile == std::end(tiles) ? 0 : tile->group_us;
}

// Clusters of `size` blocks that run at once, `resident` blocks on a multiprocessor. Each lies in
// one of the GPU's parts, of 16 multiprocessors or a few more or less, which differ from GPU to
// GPU. An H200 ran 39 of three blocks, 30 or 31 of four, 22 or 23 of five, 16 or 17 of six, 15 of
// seven and of eight: as if one part had 12. One more cluster than fit takes as long again. Pairs
// fit.
int64_t clusters_at_once(int64_t size, int64_t resident, const Device& device) {
  constexpr int64_t kPart = 16, kLastPart = 12;
  if (size <= 2) return std::max<int64_t>(1, device.multiprocessors * resident / size);
  const int64_t parts = std::max<int64_t>(1, device.multiprocessors / kPart);
  return std::max<int64_t>(1,
                           (parts - 1) * (kPart * resident / size) + kLastPart * resident / size);
}

double sliced_us(const GemmProblem& problem, const WgmmaConfig& config, const Device& device) {
  const bool shared = config.tokens <= kWgmmaSharedTokens;
  const int64_t resident = shared ? 2 : 1, tiles = blocks(problem.n, config.rows);
  const int64_t waves = blocks(tiles, clusters_at_once(config.cluster, resident, device));
  const double busy = std::min(1.0, static_cast<double>(tiles * config.cluster) /
                                        static_cast<double>(resident * device.multiprocessors));
  const auto groups = static_cast<double>(blocks(group_count(problem.k), config.cluster));
  const double group = shared ? group_us(kWgmmaSharedTiles, config) : group_us(kWgmmaTiles, config);
  return static_cast<double>(waves) * (kFillUs * busy + groups * group + end_us(config));
}

double whole_us(const GemmProblem& problem, const WgmmaConfig& config, const Device& device) {
  const WgmmaSchedule schedule = wgmma_schedule(problem, config, device);
  const int64_t whole = blocks(schedule.tiles - schedule.split, schedule.clusters);
  const int64_t cut = blocks(int64_t{schedule.split} * schedule.groups, schedule.clusters);
  const auto groups = static_cast<double>(whole * schedule.groups + cut);
  auto ends = static_cast<double>(whole + blocks(schedule.split, schedule.clusters));
  if (schedule.split > 0) ends += kCutTiles;
  const double busy =
      static_cast<double>(schedule.clusters) * config.cluster / device.multiprocessors;
  double group = group_us(kWgmmaTiles, config);
  if (problem.m <= config.tokens) group = std::max(group, kWeightUs * config.rows / 128);
  if (config.cluster == 1) group *= kAlone;
  return kFillUs * busy + groups * group + ends * end_us(config);
}

}  // namespace

double wgmma_guessed_us(const GemmProblem& problem, const WgmmaConfig& config,
                        const Device& device) {
  return config.sliced ? sliced_us(problem, config, device) : whole_us(problem, config, device);
}

}  // namespace flexq_kernels::gpu
