// GpuGemm: every product on one GPU. Knows the libraries and kernels that can do one, and which of
// them is the fastest for a shape.
#pragma once

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>

#include "ft/core/data_format.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// y [m, n] = x [m, k] · wᵀ, w [n, k] row-major (Layout::kRowMajor).
//   scheme kFloat: x and w fp16 | bf16, y fp32, or of their type for more than kSkinnyMaxTokens
//   scheme kW8A16: x fp16 | bf16, w int8, y fp32 without the weight's scales
//   scheme kW8A8:  x and w int8, y int32
struct GemmProblem {
  Scheme scheme = Scheme::kFloat;
  DataType dtype = DataType::kFp16;  // of x
  int64_t m = 0, n = 0, k = 0;
  bool rounded = false;  // kFloat, of the library: y is of x's type
};

std::ostream& operator<<(std::ostream& out, const GemmProblem& problem);

class GpuGemm {
 public:
  virtual ~GpuGemm() = default;

  // Never allocates, never synchronises. k is a multiple of 16 (8 for floats); otherwise
  // Error{kInternal}. An n that is none is slow above 64 tokens.
  virtual void run(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme, Stream stream) = 0;

  // What run() picks for a problem and why: "skinny rows=16 split=8 (table)".
  virtual std::string choice(const GemmProblem& problem) const = 0;

  // One sentence on the table of measured choices in use, or why there is none; for the log.
  virtual std::string table_note() const = 0;
};

struct GpuGemmLimits {
  int64_t max_tokens = 0;     // largest m
  int64_t largest_w8a16 = 0;  // n * k of the largest W8A16 weight of many tokens; 0: none
  bool needs_library = true;  // false: only small m; cuBLASLt is not loaded
  std::string table;          // text of a table of measured choices instead of the built-in one
};

// Of the current device. Throws Error{kDevice} if cuBLASLt is not found, with where it was looked
// for and the wheel that has it.
std::unique_ptr<GpuGemm> make_gpu_gemm(const GpuGemmLimits& limits);

// Bytes of workspace that it holds.
size_t gpu_gemm_workspace_bytes(const GpuGemmLimits& limits);

}  // namespace flexq_ft
