// The libraries' products of the same sizes: cuBLASLt in int8 and fp16, and cublasGemmEx.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ft/bench/cublas_gemm_ex.h"
#include "ft/bench/w6ax_contender.h"
#include "ft/bench/w6ax_operands.h"
#include "ft/kernels/gemm_backend.h"

namespace flexq_ft {

// The library's products, of the same sizes.
class Baselines {
 public:
  Baselines(const W6axBenchCase& problem, const W6axBenchOptions& options, Stream stream)
      : backend_({std::max<int64_t>(1024, problem.m), 0, true, {}}), m_(problem.m), n_(problem.n) {
    const std::vector<std::string>& names = options.implementations;
    const auto wants = [&](const char* name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    const bool int8 = wants("cublaslt-int8") || wants("cublas-nn");
    if (int8) make(DataType::kInt8, problem, options, stream, w_int8_, x_int8_);
    if (wants("cublaslt-fp16")) make(DataType::kFp16, problem, options, stream, w_fp16_, x_fp16_);
    if (wants("cublas-nn")) gemm_ex_.emplace();
  }

  // Those of one implementation that take the problem.
  std::vector<Contender> contenders(const std::string& name, const W6axBenchCase& problem,
                                    const Buffer& y, int heuristics) {
    if (name == "cublas-nn") return {gemm_ex(problem, y)};
    const bool int8 = name == "cublaslt-int8";
    const Scheme scheme = int8 ? Scheme::kW8A8 : Scheme::kFloat;
    GemmProblem p{scheme, int8 ? DataType::kInt8 : DataType::kFp16, problem.m, problem.n,
                  problem.k};
    p.rounded = !int8;
    std::vector<Contender> out;
    if (!GemmBackend::library_takes(p)) return out;
    const Buffer& w = int8 ? w_int8_ : w_fp16_;
    const Buffer& x = int8 ? x_int8_ : x_fp16_;
    const Tensor values = view(y, int8 ? DataType::kInt32 : DataType::kFp16);
    for (const GemmCandidate& candidate : backend_.library_candidates(p, heuristics)) {
      Contender one;
      one.implementation = name;
      one.config = candidate.config();
      one.note = candidate.note();
      one.launch = [this, values, scheme, candidate, &w, &x](int rotation, bool, Stream stream,
                                                             bool) {
        const int64_t first = rotation % (w.tensor().dim(0) / n_) * n_;
        backend_.run(values, x.tensor(), w.tensor().rows(first, first + n_), scheme, candidate,
                     stream);
      };
      out.push_back(std::move(one));
    }
    return out;
  }

  // y fp32 = x · wᵀ, both fp16. False where the library has nothing for the sizes.
  bool multiply(Tensor y, ConstTensor x, ConstTensor w, Stream stream) {
    GemmProblem p{Scheme::kFloat, DataType::kFp16, x.dim(0), w.dim(0), x.dim(1)};
    if (!backend_.has_library() || !GemmBackend::library_takes(p)) return false;
    const std::vector<GemmCandidate> all = backend_.library_candidates(p, 1);
    if (all.empty()) return false;
    backend_.run(y, x, w, Scheme::kFloat, all.front(), stream);
    return true;
  }

 private:
  Contender gemm_ex(const W6axBenchCase& p, const Buffer& y) {
    Contender one;
    one.implementation = "cublas-nn";
    one.config = "default";
    one.launch = [this, p, &y](int rotation, bool, Stream stream, bool) {
      const int64_t first = rotation % (w_int8_.tensor().dim(0) / n_) * n_;
      gemm_ex_->run(static_cast<int32_t*>(y.data()), x_int8_.tensor().data<int8_t>(),
                    w_int8_.tensor().rows(first, first + n_).data<int8_t>(), p.m, p.n, p.k, stream);
    };
    return one;
  }

  void make(DataType dtype, const W6axBenchCase& p, const W6axBenchOptions& options, Stream stream,
            Buffer& w, Buffer& x) {
    const int64_t bytes = p.n * p.k * static_cast<int64_t>(size_of(dtype));
    const int64_t rotations = rotations_of(bytes, options.cold_bytes);
    w = random_buffer(dtype, {rotations * p.n, p.k}, 4, stream);
    x = random_buffer(dtype, {p.m, p.k}, 5, stream);
  }

  Tensor view(const Buffer& y, DataType dtype) const {
    return Tensor(y.data(), dtype, Shape{m_, n_}, Device::kCuda);
  }

  GemmBackend backend_;
  int64_t m_, n_;
  Buffer w_int8_, x_int8_, w_fp16_, x_fp16_;
  std::optional<CublasGemmEx> gemm_ex_;
};

}  // namespace flexq_ft
