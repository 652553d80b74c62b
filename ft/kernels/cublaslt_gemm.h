// One product through cuBLASLt: descriptors of a problem, its algorithms, its call.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ft/core/stream.h"
#include "ft/kernels/cublaslt.h"
#include "ft/kernels/gpu_gemm.h"

namespace flexq_ft::cublaslt {

// Of the current device. Its memory and its workspace serve one queue at a time.
class Context {
 public:
  Context();
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  Handle handle() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

// What sm_90's kernels want at most; more is not used.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// y [m, n] = x [m, k] · wᵀ. The library counts columns first: it sees D [n, m] = Aᵀ B with A = w
// [k, n] and B = x [k, m], every leading dimension without padding. kFloat or kW8A8.
class Gemm {
 public:
  Gemm(const Context& context, const GemmProblem& problem);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // At most so many algorithms, the one that the library thinks fastest first; empty: none.
  std::vector<Heuristic> heuristics(int count) const;

  // Whether this library can do this problem with the algorithm, in our workspace.
  std::optional<Heuristic> checked(const Algo& algo) const;

  // Never allocates, never synchronises. Pointers are multiples of 16.
  void run(void* y, const void* x, const void* w, const Algo& algo, void* workspace,
           size_t workspace_bytes, Stream stream) const;

 private:
  void make(const GemmProblem& problem);
  void release();

  Handle handle_;
  bool integer_;
  Desc desc_ = nullptr;
  Layout w_ = nullptr, x_ = nullptr, y_ = nullptr;
};

std::string to_words(const Algo& algo);  // hex, without zeros at the end: "1c.0.3"
std::optional<Algo> from_words(const std::string& words);

// What the library shows of an algorithm: "algo=66 tile=21 stages=35 split=1 …".
std::string describe(const Algo& algo);

}  // namespace flexq_ft::cublaslt
