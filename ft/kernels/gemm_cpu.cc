#include <algorithm>
#include <vector>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/gemm_simd.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

// Bounds the packed copy of x; a multiple of every ISA's row block.
constexpr int64_t kRowsAtOnce = 1536;

const float* floats_or_null(ConstTensor t) { return t.defined() ? t.data<float>() : nullptr; }

// Packs x by pack(begin, end) over rows, then multiplies by run(begin, end) over panels.
template <typename Pack, typename Run>
void pack_and_run(const GemmTask& task, Pack&& pack, Run&& run) {
  const int64_t block = FLEXQ_ISA_PICK(gemm_row_block)();
  const int64_t blocks = (task.m + block - 1) / block;
  flexq_kernels::parallel_ranges(blocks, task.m * task.k, [&](int64_t begin, int64_t end) {
    pack(begin * block, std::min(end * block, task.m));
  });
  flexq_kernels::parallel_ranges((task.n + 15) / 16, task.m * task.n * task.k, run);
}

void multiply_floats(Tensor y, ConstTensor x, ConstTensor w, ConstTensor scale, ConstTensor bias) {
  thread_local std::vector<float> packed;
  const int64_t k = x.dim(1);
  packed.resize(static_cast<size_t>(std::min(x.dim(0), kRowsAtOnce) * k));
  float* const packed_x = packed.data();  // this thread's, for all of the team
  for (int64_t row = 0; row < x.dim(0); row += kRowsAtOnce) {
    const ConstTensor part = x.rows(row, std::min(row + kRowsAtOnce, x.dim(0)));
    const GemmTask task{y.data<float>() + row * y.dim(1),
                        packed_x,
                        w.raw(),
                        floats_or_null(scale),
                        nullptr,
                        floats_or_null(bias),
                        part.dim(0),
                        w.dim(0),
                        k,
                        w.dtype()};
    pack_and_run(
        task,
        [&](int64_t begin, int64_t end) {
          FLEXQ_ISA_PICK(gemm_pack_float)
          (packed_x, part.raw(), part.dtype(), part.dim(0), k, begin, end);
        },
        [&](int64_t begin, int64_t end) { FLEXQ_ISA_PICK(gemm_float_panels)(task, begin, end); });
  }
}

}  // namespace

void gemm_float(Tensor y, ConstTensor x, ConstTensor w, ConstTensor bias) {
  multiply_floats(y, x, w, ConstTensor(), bias);
}

void gemm_w8a16(Tensor y, ConstTensor x, ConstTensor w, ConstTensor scale, ConstTensor bias) {
  multiply_floats(y, x, w, scale, bias);
}

void gemm_w8a8(Tensor y, ConstTensor codes, ConstTensor act_scale, ConstTensor w, ConstTensor scale,
               ConstTensor bias) {
  thread_local std::vector<int16_t> packed;
  const int64_t k = codes.dim(1);
  packed.resize(static_cast<size_t>(std::min(codes.dim(0), kRowsAtOnce) * (k + k % 2)));
  int16_t* const packed_x = packed.data();
  for (int64_t row = 0; row < codes.dim(0); row += kRowsAtOnce) {
    const ConstTensor part = codes.rows(row, std::min(row + kRowsAtOnce, codes.dim(0)));
    const GemmTask task{y.data<float>() + row * y.dim(1),
                        packed_x,
                        w.raw(),
                        scale.data<float>(),
                        act_scale.data<float>() + row,
                        floats_or_null(bias),
                        part.dim(0),
                        w.dim(0),
                        k,
                        w.dtype()};
    pack_and_run(
        task,
        [&](int64_t begin, int64_t end) {
          FLEXQ_ISA_PICK(gemm_pack_int8)
          (packed_x, part.data<int8_t>(), part.dim(0), k, begin, end);
        },
        [&](int64_t begin, int64_t end) { FLEXQ_ISA_PICK(gemm_int8_panels)(task, begin, end); });
  }
}

}  // namespace flexq_ft::cpu
