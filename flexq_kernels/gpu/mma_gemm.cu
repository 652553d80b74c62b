// Launches of the mma family: arguments checked, tiles counted, an instance chosen.
#include "flexq_kernels/gpu/mma_gemm.h"

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/mma_gemm_kernel.cuh"

namespace flexq_kernels::gpu {

bool mma_has_config(const MmaConfig& config, const Device& device);

namespace {

constexpr int kBandTokens = 2048;  // whose codes stay in the L2 cache beside the weights' stream

MmaParams make_params(const Activations& x, const Weight& w, const GemmProblem& problem,
                      const MmaConfig& config) {
  FLEXQ_CHECK(x.order == CodeOrder::kNatural, "mma GEMM takes codes in natural order: ", problem);
  FLEXQ_CHECK(mma_has_config(config, current_device()), "mma GEMM has no config ", config,
              " on this GPU");
  check_activations(x, problem);
  check_weight(w);
  MmaParams params;
  params.x = x;
  params.w = w;
  params.groups = static_cast<int>(group_count(problem.k));
  params.y.m = static_cast<int>(problem.m);
  params.y.n = static_cast<int>(problem.n);
  const auto blocks = [](int64_t extent, int64_t size) {
    return static_cast<int>((extent + size - 1) / size);
  };
  params.tiles.row_blocks = blocks(problem.n, kMmaRows);
  params.tiles.token_tiles = blocks(problem.m, config.tokens);
  params.tiles.band = kBandTokens / config.tokens;
  return params;
}

template <int kTokens, int kStages, bool kDump>
void launch(const MmaParams& params, const Launch& how) {
  launch_kernel(&sm80_w6ax_mma_gemm<kTokens, kStages, kDump>,
                dim3(static_cast<unsigned>(params.tiles.count())), dim3(kMmaThreads),
                MmaShared<kTokens, kStages>::kBytes, how, params);
}

template <bool kDump>
void launch(const MmaParams& params, const MmaConfig& config, const Launch& how) {
  const auto is = [&](int tokens, int stages) { return config == MmaConfig{tokens, stages}; };
  if (is(128, 4)) return launch<128, 4, kDump>(params, how);
  if (is(128, 3)) return launch<128, 3, kDump>(params, how);
  if (is(64, 4)) return launch<64, 4, kDump>(params, how);
  if (is(64, 3)) return launch<64, 3, kDump>(params, how);
  FLEXQ_CHECK(false, "mma GEMM has no config ", config);
}

}  // namespace

void mma_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
              const MmaConfig& config, const Launch& how) {
  if (!has_work(problem, mma_why_not)) return;
  check_output(y);
  MmaParams params = make_params(x, w, problem, config);
  params.y.values = y.values;
  params.y.bias = y.bias;
  params.y.residual = y.residual;
  params.type = y.type;
  launch<false>(params, config, how);
}

void mma_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                    const GemmProblem& problem, const MmaConfig& config, const Launch& how) {
  if (!has_work(problem, mma_why_not)) return;
  check_pointer(sums, "group sums");
  MmaParams params = make_params(x, w, problem, config);
  params.sums = sums;
  launch<true>(params, config, how);
}

}  // namespace flexq_kernels::gpu
