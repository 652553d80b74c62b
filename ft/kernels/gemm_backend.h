// What can do a product on this GPU, and doing it: our kernels for few rows, cuBLASLt's algorithms.
// GpuGemm chooses among them, GemmTuner measures them.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/cublaslt_gemm.h"
#include "ft/kernels/gemm_table.h"
#include "ft/kernels/gpu_gemm.h"
#include "ft/kernels/skinny_gemm.h"

namespace flexq_ft {

// One way to do a problem: a skinny kernel's configuration or an algorithm of the library.
struct GemmCandidate {
  std::optional<gpu::SkinnyConfig> skinny;
  cublaslt::Heuristic library;

  // The columns of a table's row.
  std::string kernel() const { return skinny ? "skinny" : "cublaslt"; }
  std::string config() const;
  std::string note() const;
};

class GemmBackend {
 public:
  explicit GemmBackend(const GpuGemmLimits& limits);

  const cuda::DeviceInfo& device() const { return device_; }
  bool has_library() const { return context_ != nullptr; }
  size_t library_version() const { return has_library() ? cublaslt::library().version : 0; }

  std::vector<GemmCandidate> skinny_candidates(const GemmProblem& problem) const;
  // At most so many, the one that the library thinks fastest first.
  std::vector<GemmCandidate> library_candidates(const GemmProblem& problem, int count);

  // Rows of y are whole 16-byte pieces: not so for a vocabulary of an odd number of tokens.
  static bool library_takes(const GemmProblem& problem);

  // Whether the problem's weight, if it is W8A16, can be dequantised for the library.
  bool has_room(const GemmProblem& problem) const;

  // What a row of a table means here; why_not says it where it means nothing.
  std::optional<GemmCandidate> restored(const GemmRow& row, const GemmProblem& problem,
                                        std::string* why_not);

  // Never allocates memory of the device, never synchronises.
  void run(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme, const GemmCandidate& candidate,
           Stream stream);

  static size_t workspace_bytes(const GpuGemmLimits& limits);

 private:
  // The product that the library is asked for: W8A16 by a dequantised weight.
  static GemmProblem library_problem(const GemmProblem& problem);
  cublaslt::Gemm& library_gemm(const GemmProblem& problem);

  using Key = std::tuple<Scheme, DataType, bool, int64_t, int64_t, int64_t>;

  cuda::DeviceInfo device_;
  int64_t largest_w8a16_ = 0;
  Buffer workspace_;
  Buffer dequantized_;  // one W8A16 weight at a time
  std::unique_ptr<cublaslt::Context> context_;
  std::map<Key, cublaslt::Gemm> gemms_;  // behind the context: gone before it
};

// Throws Error{kInternal} unless the tensors make up a problem that products are defined for.
GemmProblem gemm_problem(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme);

}  // namespace flexq_ft
