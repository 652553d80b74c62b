// Argument checks that the launchers share.
#pragma once

#include <cstdint>
#include <string>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// Device memory as all kernels want it: there, and on a 16-byte boundary.
inline void check_pointer(const void* pointer, const char* what) {
  FLEXQ_CHECK(pointer != nullptr, what, ": a null pointer");
  FLEXQ_CHECK(reinterpret_cast<uintptr_t>(pointer) % 16 == 0, what, " at ", pointer,
              " is not on a 16-byte boundary");
}

inline void check_activations(const Activations& x, const GemmProblem& problem) {
  check_pointer(x.codes, "activation codes");
  check_pointer(x.scales, "activation scales");
  FLEXQ_CHECK(x.scale_stride >= problem.m && x.scale_stride % 4 == 0, problem,
              ": activation scales with stride ", x.scale_stride,
              ", which must be a multiple of 4 and at least m");
}

inline void check_weight(const Weight& w) {
  check_pointer(w.codes, "weight codes");
  check_pointer(w.scales, "weight scales");
}

inline void check_output(const Output& y, bool takes_gate = false) {
  check_pointer(y.values, "output");
  FLEXQ_CHECK(takes_gate || y.gate == Gate::kNone,
              "an output with a gate: only the wgmma family takes it");
  if (y.bias != nullptr) check_pointer(y.bias, "bias");
  if (y.residual != nullptr) check_pointer(y.residual, "residual");
}

// Reasons not to take a problem, of several families; empty where there is none.
inline std::string why_not_bits(const GemmProblem& problem) {
  if (problem.act_bits == 6 || problem.act_bits == 8) return {};
  return detail::join("its activations have 6 or 8 bits, not ", problem.act_bits);
}

inline std::string why_not_device(const Device& device) {
  if (device.capability() >= 80) return {};
  return detail::join("it needs compute capability 8.0, and this GPU has ", device.major, ".",
                      device.minor);
}

// Sizes and bits of a quantised product.
inline void check_problem(const GemmProblem& problem) {
  problem.validate();
  const std::string reason = why_not_bits(problem);
  FLEXQ_CHECK(reason.empty(), problem, ": ", reason);
}

// False for a product without tokens, whose operands nobody looks at. Throws for sizes and bits
// that are none, and what the family does not take.
inline bool has_work(const GemmProblem& problem,
                     std::string (*why_not)(const GemmProblem&, const Device&)) {
  problem.validate();
  if (problem.m == 0) return false;
  const std::string reason = why_not(problem, current_device());
  FLEXQ_CHECK(reason.empty(), problem, ": ", reason);
  return true;
}

}  // namespace flexq_kernels::gpu
