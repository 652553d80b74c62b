// Launches of the wgmma family: arguments checked, tensor maps and tiles made, an instance chosen.
#include "flexq_kernels/gpu/wgmma_gemm.h"

#include <string>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/wgmma_gemm_kernel.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_sliced.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kBandTokens = 2048;  // whose codes stay in the L2 cache beside the weights' stream

WgmmaParams make_params(const Activations& x, const Weight& w, const GemmProblem& problem,
                        const WgmmaConfig& config) {
  FLEXQ_CHECK(x.order == CodeOrder::kNatural, "wgmma GEMM takes codes in natural order: ", problem);
  FLEXQ_CHECK(wgmma_has_config(config), "wgmma GEMM has no config ", config);
  const std::string why = wgmma_config_why_not(problem, config, current_device());
  FLEXQ_CHECK(why.empty(), "wgmma GEMM ", config, " does not take ", problem, ": ", why);
  check_activations(x, problem);
  check_weight(w);
  WgmmaParams params;
  params.groups = static_cast<int>(group_count(problem.k));
  params.y.m = static_cast<int>(problem.m);
  params.y.n = params.rows = static_cast<int>(problem.n);
  encode_tensor_maps(params, x, w, problem, config);
  const auto blocks = [](int64_t extent, int64_t size) {
    return static_cast<int>((extent + size - 1) / size);
  };
  params.tiles.row_blocks =
      blocks(problem.n, config.sliced ? config.rows : config.rows * config.cluster);
  params.tiles.token_tiles = blocks(problem.m, config.tokens);
  params.tiles.band = kBandTokens / config.tokens;
  if (config.sliced) {
    params.slices = config.cluster;
  } else {
    params.schedule = wgmma_schedule(problem, config, current_device());
  }
  return params;
}

void check_gate(const Output& y, const GemmProblem& problem, const WgmmaConfig& config) {
  if (y.gate == Gate::kNone) return;
  FLEXQ_CHECK(wgmma_takes_gate(config), problem, ": a gate, which ", config, " does not take");
  FLEXQ_CHECK(problem.n % kTileRows == 0, problem, ": n of gate and up in bands of eight rows, ",
              "which must be a multiple of ", kTileRows);
  FLEXQ_CHECK(y.residual == nullptr, problem, ": a residual, which a gate does not take");
}

template <typename Tile, bool kDump>
void launch(const WgmmaParams& params, const Launch& how) {
  launch_kernel(&sm90_w6ax_wgmma_gemm<Tile, kDump>, dim3(params.schedule.clusters * Tile::kCluster),
                dim3(kWgmmaThreads<Tile>), WgmmaShared<Tile>::kBytes, how, params);
}

template <int kRows, int kTokens, bool kDump>
void launch(const WgmmaParams& params, int cluster, const Launch& how) {
  if (cluster == 2) return launch<WgmmaTile<kRows, kTokens, 2>, kDump>(params, how);
  launch<WgmmaTile<kRows, kTokens, 1>, kDump>(params, how);
}

// A cluster for each tile, of a block for each slice.
Grid sliced_grid(const WgmmaParams& params) {
  const auto slices = static_cast<unsigned>(params.slices);
  return {dim3(static_cast<unsigned>(params.tiles.row_blocks) * slices), slices};
}

template <int kTokens, bool kDump>
void launch_sliced(const WgmmaParams& params, const Launch& how) {
  launch_kernel(&sm90_w6ax_wgmma_sliced<kTokens, kDump>, sliced_grid(params), dim3(kSlicedThreads),
                SlicedShared<kTokens>::kBytes, how, params);
}

template <int kRows, int kTokens, bool kDump>
void launch_slices(const WgmmaParams& params, const Launch& how) {
  using Tile = WgmmaSlicedTile<kRows, kTokens>;
  launch_kernel(&sm90_w6ax_wgmma_slices<Tile, kDump>, sliced_grid(params),
                dim3(kWgmmaThreads<Tile>), WgmmaShared<Tile>::kBytes, how, params);
}

template <bool kDump>
void launch(const WgmmaParams& params, const WgmmaConfig& config, const Launch& how) {
  const auto is = [&](int rows, int tokens) {
    return config.rows == rows && config.tokens == tokens;
  };
  if (config.sliced) {
    if (is(128, 32)) return launch_sliced<32, kDump>(params, how);
    if (is(128, 64)) return launch_sliced<64, kDump>(params, how);
    if (is(256, 128)) return launch_slices<256, 128, kDump>(params, how);
    if (is(192, 128)) return launch_slices<192, 128, kDump>(params, how);
    if (is(128, 128)) return launch_slices<128, 128, kDump>(params, how);
    if (is(128, 192)) return launch_slices<128, 192, kDump>(params, how);
    if (is(128, 256)) return launch_slices<128, 256, kDump>(params, how);
  }
  if (is(256, 128)) return launch<256, 128, kDump>(params, config.cluster, how);
  if (is(192, 128)) return launch<192, 128, kDump>(params, config.cluster, how);
  if (is(128, 256)) return launch<128, 256, kDump>(params, config.cluster, how);
  if (is(128, 192)) return launch<128, 192, kDump>(params, config.cluster, how);
  if (is(128, 128)) return launch<128, 128, kDump>(params, config.cluster, how);
  if (is(128, 64)) return launch<128, 64, kDump>(params, config.cluster, how);
  FLEXQ_CHECK(false, "wgmma GEMM has no config ", config);
}

}  // namespace

void wgmma_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
                const WgmmaConfig& config, void* workspace, const Launch& how) {
  if (!has_work(problem, wgmma_why_not)) return;
  check_output(y, true);
  check_gate(y, problem, config);
  WgmmaParams params = make_params(x, w, problem, config);
  if (params.schedule.split > 0) {
    check_pointer(workspace, "workspace of a wgmma GEMM that splits");
    const size_t flags = kWgmmaFlagBytes * static_cast<size_t>(current_device().multiprocessors);
    params.handed_flags = static_cast<int32_t*>(workspace);
    params.handed = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + flags);
  }
  params.y.values = y.values;
  params.y.bias = y.bias;
  params.y.residual = y.residual;
  params.type = y.type;
  params.gate = y.gate;
  if (y.gate != Gate::kNone) params.y.n /= 2;
  launch<false>(params, config, how);
}

void wgmma_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                      const GemmProblem& problem, const WgmmaConfig& config, const Launch& how) {
  if (!has_work(problem, wgmma_why_not)) return;
  check_pointer(sums, "group sums");
  WgmmaParams params = make_params(x, w, problem, config);
  params.sums = sums;
  launch<true>(params, config, how);
}

}  // namespace flexq_kernels::gpu
