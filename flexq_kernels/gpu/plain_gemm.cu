// The plain GEMM: one thread per output walks its row of the weight tile by tile.
#include "flexq_kernels/gpu/plain_gemm.h"

#include "flexq_kernels/activation_order.h"
#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/output.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kBlockThreads = 128;
constexpr int64_t kMostBlocksY = 65535;

struct PlainArgs {
  Output y;
  int32_t* sums;
  Activations x;
  Weight w;
  int64_t n;
  int64_t groups;
};

// The accumulator of one group: kSumBias + the sum over 128 k of 4 q_w q_a. Row r of the tile is in
// the registers r / 8 (k 0 … 15 of a step) and r / 8 + 2 (k 16 … 31) of lanes 4 (r % 8) + t.
template <CodeOrder kOrder>
__device__ int32_t biased_group_sum(const uint32_t* tile, int row, const uint32_t* codes) {
  int32_t sum = kSumBias;
  for (int s = 0; s < kStepsPerGroup; ++s) {
    for (int t = 0; t < 4; ++t) {
      const int lane = 4 * (row % 8) + t;
      uint32_t words[3];
      for (int i = 0; i < 3; ++i) {
        const int word = 3 * s + i;
        words[i] = tile[word / 4 * 128 + lane * 4 + word % 4];
      }
      uint32_t a[4];
      unpack_int6(a, words[0], words[1], words[2]);
      for (int half = 0; half < 2; ++half) {
        const int k_word = 8 * s + 4 * half + t;
        const uint32_t x = codes[kOrder == CodeOrder::kFragment ? fragment_word(k_word) : k_word];
        const uint32_t w = row < 8 ? a[2 * half] : a[2 * half + 1];
        sum = __dp4a(static_cast<int>(w), static_cast<int>(x), sum);
      }
    }
  }
  return sum;
}

// blockIdx.x: the token; blockIdx.y: which 128 outputs.
template <CodeOrder kOrder>
__global__ void __launch_bounds__(kBlockThreads) plain_w6ax_gemm(const PlainArgs args) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t m = blockIdx.x;
  const int64_t n = static_cast<int64_t>(blockIdx.y) * kBlockThreads + threadIdx.x;
  if (n >= args.n) return;
  float sum = 0.0f;
  for (int64_t g = 0; g < args.groups; ++g) {
    const int64_t tile = n / kTileRows * args.groups + g;
    const int row = static_cast<int>(n % kTileRows);
    const int32_t biased = biased_group_sum<kOrder>(
        reinterpret_cast<const uint32_t*>(args.w.codes + tile * kTileBytes), row,
        reinterpret_cast<const uint32_t*>(args.x.codes + (m * args.groups + g) * kGroupSize));
    if (args.sums != nullptr) {
      args.sums[(m * args.n + n) * args.groups + g] = group_sum(biased);
      continue;
    }
    const uint16_t scale = args.w.scales[tile * kTileRows + row];
    const WeightScale weight_scale(__half2float(__ushort_as_half(scale)));
    sum = __fmaf_rn(weight_scale.apply(biased), args.x.scales[g * args.x.scale_stride + m], sum);
  }
  if (args.sums == nullptr) store_output(args.y, m * args.n + n, n, sum);
}

void launch_plain(const PlainArgs& args, const GemmProblem& problem, const Launch& launch) {
  check_activations(args.x, problem);
  check_weight(args.w);
  const int64_t blocks = (problem.n + kBlockThreads - 1) / kBlockThreads;
  const dim3 grid(static_cast<unsigned>(problem.m), static_cast<unsigned>(blocks));
  const auto kernel = args.x.order == CodeOrder::kNatural ? plain_w6ax_gemm<CodeOrder::kNatural>
                                                          : plain_w6ax_gemm<CodeOrder::kFragment>;
  launch_kernel(kernel, grid, kBlockThreads, 0, launch, args);
}

}  // namespace

std::string plain_why_not(const GemmProblem& problem, const Device&) {
  constexpr int64_t kMostN = kMostBlocksY * kBlockThreads;
  if (problem.n <= kMostN) return why_not_bits(problem);
  return detail::join("it takes n up to ", kMostN, ", not ", problem.n);
}

void plain_gemm(const Output& y, const Activations& x, const Weight& w, const GemmProblem& problem,
                const Launch& launch) {
  if (!has_work(problem, plain_why_not)) return;
  check_output(y);
  launch_plain({y, nullptr, x, w, problem.n, group_count(problem.k)}, problem, launch);
}

void plain_group_sums(int32_t* sums, const Activations& x, const Weight& w,
                      const GemmProblem& problem, const Launch& launch) {
  if (!has_work(problem, plain_why_not)) return;
  check_pointer(sums, "group sums");
  launch_plain({{}, sums, x, w, problem.n, group_count(problem.k)}, problem, launch);
}

}  // namespace flexq_kernels::gpu
