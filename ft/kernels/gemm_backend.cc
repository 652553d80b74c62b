#include "ft/kernels/gemm_backend.h"

#include "ft/core/check.h"
#include "ft/kernels/dequantize_gpu.h"

namespace flexq_ft {

namespace {

DataType output_type(Scheme scheme) {
  return scheme == Scheme::kW8A8 ? DataType::kInt32 : DataType::kFp32;
}

}  // namespace

GemmProblem gemm_problem(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme) {
  FLEXQ_FT_CHECK(x.rank() == 2 && w.rank() == 2, "x ", x.shape(), ", w ", w.shape());
  GemmProblem p{scheme, x.dtype(), x.dim(0), w.dim(0), w.dim(1)};
  p.rounded = scheme == Scheme::kFloat && y.dtype() == x.dtype();
  FLEXQ_FT_CHECK_EQ(x.dim(1), p.k, p);
  FLEXQ_FT_CHECK_EQ(y.shape(), (Shape{p.m, p.n}), p);
  FLEXQ_FT_CHECK_EQ(y.dtype(), p.rounded ? x.dtype() : output_type(scheme), p);
  for (Device device : {y.device(), x.device(), w.device()}) {
    FLEXQ_FT_CHECK_EQ(device, Device::kCuda, p);
  }
  const bool halves = p.dtype == DataType::kFp16 || p.dtype == DataType::kBf16;
  switch (scheme) {
    case Scheme::kFloat:
      FLEXQ_FT_CHECK(halves && w.dtype() == p.dtype, p, ", w of ", w.dtype());
      break;
    case Scheme::kW8A16:
      FLEXQ_FT_CHECK(halves && w.dtype() == DataType::kInt8, p, ", w of ", w.dtype());
      break;
    case Scheme::kW8A8:
      FLEXQ_FT_CHECK(p.dtype == DataType::kInt8 && w.dtype() == DataType::kInt8, p);
      break;
    default:
      FLEXQ_FT_CHECK(false, p);
  }
  const int64_t step = scheme == Scheme::kFloat ? 8 : 16;
  FLEXQ_FT_CHECK_EQ(p.k % step, 0, "k is a multiple of ", step, ": ", p);
  return p;
}

std::string GemmCandidate::config() const {
  return skinny ? detail::join(*skinny) : cublaslt::to_words(library.algo);
}

std::string GemmCandidate::note() const {
  if (skinny) return {};
  return detail::join(cublaslt::describe(library.algo), " workspace=", library.workspace_bytes);
}

GemmBackend::GemmBackend(const GpuGemmLimits& limits)
    : device_(cuda::device_info(cuda::current_device())), largest_w8a16_(limits.largest_w8a16) {
  if (!limits.needs_library) return;
  context_ = std::make_unique<cublaslt::Context>();
  workspace_ = Buffer(cublaslt::kWorkspaceBytes, MemoryKind::kWorkspace, Device::kCuda);
  if (largest_w8a16_ > 0 && limits.max_tokens > gpu::kSkinnyMaxTokens) {
    dequantized_ =
        Buffer(static_cast<size_t>(largest_w8a16_) * 2, MemoryKind::kWorkspace, Device::kCuda);
  }
}

size_t GemmBackend::workspace_bytes(const GpuGemmLimits& limits) {
  if (!limits.needs_library) return 0;
  const bool dequantizes = limits.largest_w8a16 > 0 && limits.max_tokens > gpu::kSkinnyMaxTokens;
  return cublaslt::kWorkspaceBytes +
         (dequantizes ? static_cast<size_t>(limits.largest_w8a16) * 2 : 0);
}

bool GemmBackend::library_takes(const GemmProblem& problem) {
  return problem.n % (problem.scheme == Scheme::kFloat ? 8 : 16) == 0;
}

bool GemmBackend::has_room(const GemmProblem& problem) const {
  if (problem.scheme != Scheme::kW8A16) return true;
  return dequantized_.defined() && problem.n * problem.k <= largest_w8a16_;
}

GemmProblem GemmBackend::library_problem(const GemmProblem& problem) {
  GemmProblem p = problem;
  if (p.scheme == Scheme::kW8A16) p.scheme = Scheme::kFloat;
  return p;
}

cublaslt::Gemm& GemmBackend::library_gemm(const GemmProblem& problem) {
  FLEXQ_FT_CHECK(has_library(), "cuBLASLt was not asked for, and is needed for ", problem);
  const GemmProblem p = library_problem(problem);
  return gemms_.try_emplace(Key{p.scheme, p.dtype, p.rounded, p.m, p.n, p.k}, *context_, p)
      .first->second;
}

std::vector<GemmCandidate> GemmBackend::skinny_candidates(const GemmProblem& problem) const {
  std::vector<GemmCandidate> out;
  if (!gpu::skinny_gemm_takes(problem)) return out;
  for (const gpu::SkinnyConfig& config : gpu::skinny_configs(problem)) out.push_back({config, {}});
  return out;
}

std::vector<GemmCandidate> GemmBackend::library_candidates(const GemmProblem& problem, int count) {
  std::vector<GemmCandidate> out;
  if (!library_takes(problem) || !has_room(problem)) return out;
  for (const cublaslt::Heuristic& found : library_gemm(problem).heuristics(count)) {
    out.push_back({{}, found});
  }
  return out;
}

std::optional<GemmCandidate> GemmBackend::restored(const GemmRow& row, const GemmProblem& problem,
                                                   std::string* why_not) {
  if (row.kernel == "skinny") {
    for (GemmCandidate& candidate : skinny_candidates(problem)) {
      if (candidate.config() == row.config) return std::move(candidate);
    }
    *why_not = "the table's skinny " + row.config + " is not built";
    return {};
  }
  if (!has_room(problem)) {
    *why_not = "no room to dequantise";
    return {};
  }
  const std::optional<cublaslt::Algo> algo = cublaslt::from_words(row.config);
  if (algo) {
    if (auto found = library_gemm(problem).checked(*algo)) return GemmCandidate{{}, *found};
  }
  *why_not = "cuBLASLt refuses the table's algorithm";
  return {};
}

void GemmBackend::run(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme,
                      const GemmCandidate& candidate, Stream stream) {
  if (candidate.skinny) {
    gpu::invokeSkinnyGemm(y, x, w, scheme, *candidate.skinny, stream);
    return;
  }
  GemmProblem problem{scheme, x.dtype(), x.dim(0), w.dim(0), w.dim(1)};
  problem.rounded = scheme == Scheme::kFloat && y.dtype() == x.dtype();
  if (scheme == Scheme::kW8A16) {
    FLEXQ_FT_CHECK(has_room(problem), "no room to dequantise for ", problem);
    const Tensor floats = dequantized_.tensor(x.dtype(), w.shape());
    gpu::invokeDequantizeCodes(floats, w, stream);
    w = floats;
  }
  library_gemm(problem).run(y.raw(), x.raw(), w.raw(), candidate.library.algo, workspace_.data(),
                            workspace_.bytes(), stream);
}

}  // namespace flexq_ft
