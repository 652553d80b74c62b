// W6axGemm: every product of six-bit weights on one GPU. Knows which kernel of flexq_kernels is
// right for a problem, and has the workspace that some of them want.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "flexq_kernels/gpu/gemm.h"
#include "ft/core/model_config.h"
#include "ft/kernels/product.h"

namespace flexq_ft {

class W6axGemm {
 public:
  virtual ~W6axGemm() = default;

  // In which order the kernel of a problem reads the codes of its activations: LinearInput::order.
  virtual flexq_kernels::gpu::CodeOrder code_order(
      const flexq_kernels::GemmProblem& problem) const = 0;

  // Whether run() takes a gate with a problem.
  virtual bool takes_gate(const flexq_kernels::GemmProblem& problem) const = 0;

  // y [m, n] fp32, or of x's compute type, = x · wᵀ + bias; with a gate [m, n / 2] = act(gate) * up
  // of a product of gate and up, whose rows lie in pairs (RowOrder).
  //   x     act_bits 6 or 8: codes in code_order(problem), scales of stride scale_stride_of(m);
  //         16: values, whose products have the same bits for any m
  //   bias  [n] fp32 or undefined
  // Never allocates, never synchronises. Operands that do not fit the problem: Error{kInternal}.
  virtual void run(Tensor y, const LinearInput& x, const flexq_kernels::gpu::Weight& w,
                   ConstTensor bias, const flexq_kernels::GemmProblem& problem,
                   std::optional<Activation> gate, Stream stream) = 0;

  // What run() picks for a problem and why: "stream kernel=direct tiles=1 … (table)".
  virtual std::string choice(const flexq_kernels::GemmProblem& problem) const = 0;

  // One sentence on the table of measured choices in use, or why there is none; for the log.
  virtual std::string table_note() const = 0;
};

// What the current device has for a problem: the table in use, then the choice and why, the other
// candidates, and the families that do not take it with the reason; a line each. Sizes that are no
// problem: Error{kConfig}.
std::string explain_w6ax(const flexq_kernels::GemmProblem& problem);

// Of the current device.
std::unique_ptr<W6axGemm> make_w6ax_gemm();

// Bytes of workspace that it holds on the current device.
size_t w6ax_gemm_workspace_bytes();

}  // namespace flexq_ft
