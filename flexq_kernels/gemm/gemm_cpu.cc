// The CPU GEMMs: per-call buffers, and threads over row tiles of the weight.
#include "flexq_kernels/gemm/gemm_cpu.h"

#include <vector>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quant/quantize_cpu.h"

namespace flexq_kernels {

namespace {

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
  const int64_t groups = group_count(problem.k);
  const int64_t padded = groups * kGroupSize;
  const int64_t bytes_per_value = type == FloatType::kFp32 ? 4 : 2;
  thread_local std::vector<float> wide;
  wide.assign(static_cast<size_t>(problem.m * padded), 0.0f);
  float* const values = wide.data();
  const auto to_fp32 = FLEXQ_ISA_PICK(widen);
  parallel_ranges(problem.m, problem.m * problem.k / 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      to_fp32(values + row * padded,
              static_cast<const uint8_t*>(x) + row * problem.k * bytes_per_value, type, problem.k);
    }
  });
  const W6A16Task task{y, values, w.codes, w.scales, bias, problem.m, problem.n, groups};
  const auto run = FLEXQ_ISA_PICK(w6a16_row_tiles);
  parallel_ranges(row_tiles(problem.n), work(problem),
                  [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

}  // namespace flexq_kernels
