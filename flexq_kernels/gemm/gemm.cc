// W6Ax and W6A16 GEMM: checks and dispatch.
#include "flexq_kernels/gemm.h"

#include "flexq_kernels/check.h"
#include "flexq_kernels/gemm/gemm_cpu.h"

namespace flexq_kernels {

namespace {

void check_bits(const GemmProblem& problem, bool integer) {
  problem.validate();
  FLEXQ_CHECK((problem.act_bits < 16) == integer, problem, ": ",
              integer ? "gemm_w6ax takes 6- or 8-bit activations; 16 bit is gemm_w6a16"
                      : "gemm_w6a16 takes 16-bit activations; 6 and 8 bit are gemm_w6ax");
}

}  // namespace

void gemm_w6ax(float* y, const QuantizedActivations& a, const PackedWeight& w, const float* bias,
               const GemmProblem& problem) {
  check_bits(problem, true);
  if (problem.m == 0) return;
  FLEXQ_CHECK(y && a.codes && a.scales && w.codes && w.scales, problem, ": a null operand");
  gemm_w6ax_cpu(y, a, w, bias, problem);
}

void group_sums_w6ax(int32_t* sums, const int8_t* a_codes, const uint8_t* w_codes,
                     const GemmProblem& problem) {
  check_bits(problem, true);
  if (problem.m == 0) return;
  FLEXQ_CHECK(sums && a_codes && w_codes, problem, ": a null operand");
  group_sums_w6ax_cpu(sums, a_codes, w_codes, problem);
}

void gemm_w6a16(float* y, const void* x, FloatType type, const PackedWeight& w, const float* bias,
                const GemmProblem& problem) {
  check_bits(problem, false);
  if (problem.m == 0) return;
  FLEXQ_CHECK(y && x && w.codes && w.scales, problem, ": a null operand");
  gemm_w6a16_cpu(y, x, type, w, bias, problem);
}

}  // namespace flexq_kernels
