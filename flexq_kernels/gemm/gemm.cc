// W6Ax and W6A16 GEMM: checks and dispatch.
#include "flexq_kernels/gemm.h"

#include <initializer_list>

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

struct Operand {
  const char* name;
  const void* data;
};

void check_operands(const GemmProblem& problem, std::initializer_list<Operand> operands) {
  for (const Operand& operand : operands) {
    FLEXQ_CHECK(operand.data != nullptr, problem, ": ", operand.name, ": a null pointer");
  }
}

}  // namespace

void gemm_w6ax(float* y, const QuantizedActivations& a, const PackedWeight& w, const float* bias,
               const GemmProblem& problem) {
  check_bits(problem, true);
  if (problem.m == 0) return;
  check_operands(problem, {{"output", y},
                           {"activation codes", a.codes},
                           {"activation scales", a.scales},
                           {"weight codes", w.codes},
                           {"weight scales", w.scales}});
  gemm_w6ax_cpu(y, a, w, bias, problem);
}

void group_sums_w6ax(int32_t* sums, const int8_t* a_codes, const uint8_t* w_codes,
                     const GemmProblem& problem) {
  check_bits(problem, true);
  if (problem.m == 0) return;
  check_operands(problem,
                 {{"group sums", sums}, {"activation codes", a_codes}, {"weight codes", w_codes}});
  group_sums_w6ax_cpu(sums, a_codes, w_codes, problem);
}

void gemm_w6a16(float* y, const void* x, FloatType type, const PackedWeight& w, const float* bias,
                const GemmProblem& problem) {
  check_bits(problem, false);
  if (problem.m == 0) return;
  check_operands(
      problem,
      {{"output", y}, {"activations", x}, {"weight codes", w.codes}, {"weight scales", w.scales}});
  gemm_w6a16_cpu(y, x, type, w, bias, problem);
}

}  // namespace flexq_kernels
