#include "ft/kernels/gpu_gemm.h"

#include <algorithm>

#include "ft/core/check.h"
#include "ft/kernels/gemm_backend.h"

namespace flexq_ft {

namespace {

// Tokens up to which our kernels are the default: there a product costs the bytes of its weight.
// Above 16 cuBLASLt's tiles are full enough, unless a weight would have to be dequantised first.
int64_t skinny_by_default(Scheme scheme) { return scheme == Scheme::kW8A16 ? 64 : 16; }

struct Chosen {
  GemmCandidate candidate;
  std::string why;
};

class ChoosingGemm final : public GpuGemm {
 public:
  explicit ChoosingGemm(const GpuGemmLimits& limits) : backend_(limits) {
    const std::string gpu = backend_.device().name;
    const std::string text = limits.table.empty() ? built_in_gemm_table(gpu) : limits.table;
    if (text.empty()) {
      note_ = "no GEMM table for " + gpu + ": default kernels; measure one: flexq-ft bench tune";
      return;
    }
    table_ = GemmTable::parse(text);
    if (table_.gpu() != gpu) {
      note_ = "the GEMM table is of " + table_.gpu() + ", not " + gpu + ": default kernels";
      table_ = {};
      return;
    }
    note_ = detail::join("GEMM table of ", gpu, ": ", table_.size(), " rows");
    if (!backend_.has_library()) return;
    library_rows_ = table_.library_version() == backend_.library_version();
    if (library_rows_) return;
    note_ +=
        detail::join("; measured with cuBLASLt ", cublaslt::version_text(table_.library_version()),
                     ", and ", cublaslt::version_text(backend_.library_version()),
                     " is loaded: of that its first heuristic is taken");
  }

  void run(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme, Stream stream) override {
    const GemmProblem problem = gemm_problem(y, x, w, scheme);
    if (problem.m == 0 || problem.n == 0) return;
    if (GemmBackend::library_takes(problem) && backend_.has_room(problem)) {
      return backend_.run(y, x, w, scheme, chosen(problem).candidate, stream);
    }
    // Our kernels alone take such an n, or a weight too large to dequantise (an lm_head's), and so
    // many tokens at a time.
    for (int64_t begin = 0; begin < problem.m; begin += gpu::kSkinnyMaxTokens) {
      GemmProblem part = problem;
      part.m = std::min<int64_t>(gpu::kSkinnyMaxTokens, problem.m - begin);
      const int64_t end = begin + part.m;
      backend_.run(y.rows(begin, end), x.rows(begin, end), w, scheme, chosen(part).candidate,
                   stream);
    }
  }

  std::string choice(const GemmProblem& problem) const override {
    const Chosen& one = chosen(problem);
    const std::string config = one.candidate.skinny ? one.candidate.config() : one.candidate.note();
    return one.candidate.kernel() + " " + config + " (" + one.why + ")";
  }

  std::string table_note() const override { return note_; }

 private:
  using Key = std::tuple<Scheme, DataType, bool, int64_t, int64_t, int64_t>;

  // Chosen once for a problem; work of the host only.
  const Chosen& chosen(const GemmProblem& p) const {
    const Key key{p.scheme, p.dtype, p.rounded, p.m, p.n, p.k};
    const auto found = chosen_.find(key);
    return found != chosen_.end() ? found->second : chosen_.emplace(key, choose(p)).first->second;
  }

  Chosen choose(const GemmProblem& p) const {
    std::string why = "default";
    const GemmRow* row = table_.find(p);
    const int64_t ours = skinny_by_default(p.scheme);
    // A row of more tokens than are ours by default says nothing of those that are.
    if (row != nullptr && p.m <= ours && row->problem.m > ours) row = nullptr;
    if (row != nullptr && (row->kernel == "skinny" || library_rows_)) {
      if (auto candidate = backend_.restored(*row, p, &why)) return {*candidate, "table"};
      why = "default: " + why;
    } else if (row != nullptr) {
      why = "default: the table's cuBLASLt is another version";
    }
    if (p.m <= ours && gpu::skinny_gemm_takes(p)) {
      return {{gpu::skinny_default(p, backend_.device().multiprocessors), {}}, why};
    }
    if (backend_.has_library()) {
      const std::vector<GemmCandidate> first = backend_.library_candidates(p, 1);
      if (!first.empty()) return {first.front(), why + ", first heuristic"};
    }
    if (gpu::skinny_gemm_takes(p)) {
      return {{gpu::skinny_default(p, backend_.device().multiprocessors), {}}, why};
    }
    refuse(p);
  }

  [[noreturn]] void refuse(const GemmProblem& p) const {
    std::string cause = "cuBLASLt was not loaded: only small products were asked for";
    if (backend_.has_library()) {
      cause = detail::join("cuBLASLt ", cublaslt::version_text(backend_.library_version()), " (",
                           cublaslt::library().path, ") has no algorithm for it on ",
                           backend_.device().name, ", and our kernels do not take it");
    }
    throw Error(ErrorKind::kInternal, detail::join("no kernel for ", p), cause);
  }

  mutable GemmBackend backend_;
  GemmTable table_;
  bool library_rows_ = false;  // of the table can be used
  std::string note_;
  mutable std::map<Key, Chosen> chosen_;
};

}  // namespace

std::unique_ptr<GpuGemm> make_gpu_gemm(const GpuGemmLimits& limits) {
  return std::make_unique<ChoosingGemm>(limits);
}

size_t gpu_gemm_workspace_bytes(const GpuGemmLimits& limits) {
  return GemmBackend::workspace_bytes(limits);
}

}  // namespace flexq_ft
