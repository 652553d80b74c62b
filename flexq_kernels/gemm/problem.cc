// GemmProblem: what it accepts and how it reads in a message.
#include "flexq_kernels/check.h"
#include "flexq_kernels/gemm.h"
#include "flexq_kernels/pack.h"

namespace flexq_kernels {

void GemmProblem::validate() const {
  FLEXQ_CHECK(m >= 0 && m <= kMaxExtent, *this, ": m must be 0 … ", kMaxExtent);
  FLEXQ_CHECK(n >= 1 && n <= kMaxExtent, *this, ": n must be 1 … ", kMaxExtent);
  FLEXQ_CHECK(k >= 1 && k <= kMaxExtent, *this, ": k must be 1 … ", kMaxExtent);
  FLEXQ_CHECK(act_bits == 6 || act_bits == 8 || act_bits == 16, *this,
              ": act_bits must be 6, 8 or 16");
}

std::ostream& operator<<(std::ostream& out, const GemmProblem& problem) {
  return out << "GemmProblem{m=" << problem.m << ", n=" << problem.n << ", k=" << problem.k
             << ", abits=" << problem.act_bits << ", group=" << kGroupSize << "}";
}

}  // namespace flexq_kernels
