// The CPU GEMMs: per-call buffers, and threads over row tiles of the weight.
#include "flexq_kernels/gemm/gemm_cpu.h"

#include <algorithm>
#include <vector>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quant/quantize_cpu.h"

namespace flexq_kernels {

namespace {

// Bounds the fp32 copy of x; a multiple of the tokens that share one unpacking of a weight.
constexpr int64_t kWidenedRows = 1024;

// Steps of one problem, in units of one packed weight times one token.
int64_t work(const GemmProblem& problem) {
  return row_tiles(problem.n) * kTileRows * problem.k * problem.m;
}

// The buffer is kept by the calling thread, so that a decode step does not allocate once per
// linear; other threads reach it through the pointer only.
const int32_t* offsets_of(const int8_t* codes, int64_t count) {
  thread_local std::vector<int32_t> buffer;
  buffer.resize(static_cast<size_t>(count));
  int32_t* const offsets = buffer.data();
  const auto sum = FLEXQ_ISA_PICK(w6ax_offsets);
  parallel_ranges(count, count * kGroupSize / 8, [&](int64_t begin, int64_t end) {
    sum(offsets + begin, codes + begin * kGroupSize, end - begin);
  });
  return offsets;
}

}  // namespace

void gemm_w6ax_cpu(float* y, const QuantizedActivations& a, const PackedWeight& w,
                   const float* bias, const GemmProblem& problem) {
  W6AxTask task{};
  task.y = y;
  task.codes = a.codes;
  task.act_scales = a.scales;
  task.weight_codes = w.codes;
  task.weight_scales = w.scales;
  task.bias = bias;
  task.m = problem.m;
  task.n = problem.n;
  task.groups = group_count(problem.k);
  task.offsets = offsets_of(a.codes, task.m * task.groups);
  const auto run = FLEXQ_ISA_PICK(w6ax_row_tiles);
  parallel_ranges(row_tiles(problem.n), work(problem),
                  [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

void group_sums_w6ax_cpu(int32_t* sums, const int8_t* a_codes, const uint8_t* w_codes,
                         const GemmProblem& problem) {
  W6AxTask task{};
  task.sums = sums;
  task.codes = a_codes;
  task.weight_codes = w_codes;
  task.m = problem.m;
  task.n = problem.n;
  task.groups = group_count(problem.k);
  task.offsets = offsets_of(a_codes, task.m * task.groups);
  const auto run = FLEXQ_ISA_PICK(w6ax_sums_row_tiles);
  parallel_ranges(row_tiles(problem.n), work(problem),
                  [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

void gemm_w6a16_cpu(float* y, const void* x, FloatType type, const PackedWeight& w,
                    const float* bias, const GemmProblem& problem) {
  const int64_t k = problem.k, groups = group_count(k), padded = groups * kGroupSize;
  const int64_t row_bytes = k * (type == FloatType::kFp32 ? 4 : 2);
  thread_local std::vector<float> wide;
  wide.resize(static_cast<size_t>(std::min(problem.m, kWidenedRows) * padded));
  float* const values = wide.data();
  const auto to_fp32 = FLEXQ_ISA_PICK(widen);
  const auto run = FLEXQ_ISA_PICK(w6a16_row_tiles);
  for (int64_t first = 0; first < problem.m; first += kWidenedRows) {
    GemmProblem part = problem;
    part.m = std::min(problem.m - first, kWidenedRows);
    const auto* from = static_cast<const uint8_t*>(x) + first * row_bytes;
    parallel_ranges(part.m, part.m * k / 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        to_fp32(values + row * padded, from + row * row_bytes, type, k);
        std::fill(values + row * padded + k, values + (row + 1) * padded, 0.0f);
      }
    });
    const W6A16Task task{
        y + first * problem.n, values, w.codes, w.scales, bias, part.m, part.n, groups};
    parallel_ranges(row_tiles(part.n), work(part),
                    [&](int64_t begin, int64_t end) { run(task, begin, end); });
  }
}

}  // namespace flexq_kernels
