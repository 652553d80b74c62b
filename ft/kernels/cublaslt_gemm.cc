#include "ft/kernels/cublaslt_gemm.h"

#include <charconv>
#include <sstream>

#include "ft/core/check.h"

namespace flexq_ft::cublaslt {

namespace {

const Api& api() { return library().api; }

int type_of(DataType dtype) {
  switch (dtype) {
    case DataType::kFp16:
      return kR16F;
    case DataType::kBf16:
      return kR16BF;
    case DataType::kInt8:
      return kR8I;
    default:
      FLEXQ_FT_CHECK(false, "cuBLASLt product of ", dtype);
  }
  return 0;
}

// Limits of the search. Algorithms for pointers of any alignment that rows of a matrix have.
class SearchLimits {
 public:
  SearchLimits() {
    FLEXQ_FT_CUBLASLT(api().preference_create(&preference_));
    try {
      set(kPrefMaxWorkspaceBytes, static_cast<uint64_t>(kWorkspaceBytes));
      set(kPrefReductionMask, kReductionComputeType | kReductionOutputType);
      for (int matrix : {kPrefAlignmentA, kPrefAlignmentB, kPrefAlignmentC, kPrefAlignmentD}) {
        set(matrix, uint32_t{16});
      }
    } catch (...) {
      api().preference_destroy(preference_);
      throw;
    }
  }
  ~SearchLimits() { api().preference_destroy(preference_); }
  SearchLimits(const SearchLimits&) = delete;
  SearchLimits& operator=(const SearchLimits&) = delete;
  Preference get() const { return preference_; }

 private:
  template <typename T>
  void set(int attribute, T value) {
    FLEXQ_FT_CUBLASLT(api().preference_set(preference_, attribute, &value, sizeof(value)));
  }

  Preference preference_ = nullptr;
};

}  // namespace

Context::Context() { FLEXQ_FT_CUBLASLT(api().create(&handle_)); }
Context::~Context() { api().destroy(handle_); }

Gemm::Gemm(const Context& context, const GemmProblem& problem)
    : handle_(context.handle()), integer_(problem.scheme == Scheme::kW8A8) {
  FLEXQ_FT_CHECK(problem.scheme == Scheme::kFloat || integer_, problem);
  FLEXQ_FT_CHECK(!integer_ || problem.dtype == DataType::kInt8, problem);
  try {
    make(problem);
  } catch (...) {
    release();
    throw;
  }
}

Gemm::~Gemm() { release(); }

void Gemm::make(const GemmProblem& p) {
  const int type = type_of(p.dtype);
  FLEXQ_FT_CUBLASLT(
      api().desc_create(&desc_, integer_ ? kCompute32I : kCompute32F, integer_ ? kR32I : kR32F));
  FLEXQ_FT_CUBLASLT(api().desc_set(desc_, kDescTransA, &kOpTranspose, sizeof(kOpTranspose)));
  const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n),
             k = static_cast<uint64_t>(p.k);
  FLEXQ_FT_CUBLASLT(api().layout_create(&w_, type, k, n, p.k));
  FLEXQ_FT_CUBLASLT(api().layout_create(&x_, type, k, m, p.k));
  FLEXQ_FT_CUBLASLT(api().layout_create(&y_,
                                        integer_    ? kR32I
                                        : p.rounded ? type
                                                    : kR32F,
                                        n, m, p.n));
}

void Gemm::release() {
  for (Layout layout : {w_, x_, y_}) {
    if (layout != nullptr) api().layout_destroy(layout);
  }
  if (desc_ != nullptr) api().desc_destroy(desc_);
}

std::vector<Heuristic> Gemm::heuristics(int count) const {
  const SearchLimits limits;
  std::vector<Heuristic> results(static_cast<size_t>(count));
  int returned = 0;
  const int status = api().heuristic(handle_, desc_, w_, x_, y_, y_, limits.get(), count,
                                     results.data(), &returned);
  if (status == kNotSupported) return {};
  FLEXQ_FT_CUBLASLT(status);
  std::vector<Heuristic> usable;
  for (int i = 0; i < returned; ++i) {
    const Heuristic& result = results[static_cast<size_t>(i)];
    if (result.state == kSuccess && result.workspace_bytes <= kWorkspaceBytes) {
      usable.push_back(result);
    }
  }
  return usable;
}

std::optional<Heuristic> Gemm::checked(const Algo& algo) const {
  Heuristic result;
  if (api().algo_check(handle_, desc_, w_, x_, y_, y_, &algo, &result) != kSuccess) return {};
  if (result.state != kSuccess || result.workspace_bytes > kWorkspaceBytes) return {};
  result.algo = algo;
  return result;
}

void Gemm::run(void* y, const void* x, const void* w, const Algo& algo, void* workspace,
               size_t workspace_bytes, Stream stream) const {
  for (const void* pointer : {static_cast<const void*>(y), x, w}) {
    FLEXQ_FT_CHECK_EQ(reinterpret_cast<uintptr_t>(pointer) % 16, 0u, "alignment for cuBLASLt");
  }
  const float float_one = 1.0f, float_zero = 0.0f;
  const int32_t int_one = 1, int_zero = 0;
  const void* one = integer_ ? static_cast<const void*>(&int_one) : &float_one;
  const void* zero = integer_ ? static_cast<const void*>(&int_zero) : &float_zero;
  FLEXQ_FT_CUBLASLT(api().matmul(handle_, desc_, one, w, w_, x, x_, zero, y, y_, y, y_, &algo,
                                 workspace, workspace_bytes, stream.handle));
  // No kernel of ours may start before the library's has ended (launch.cuh).
  full_edge(stream);
}

std::string to_words(const Algo& algo) {
  int words = 8;
  while (words > 1 && algo.data[words - 1] == 0) --words;
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << std::hex;
  for (int i = 0; i < words; ++i) out << (i > 0 ? "." : "") << algo.data[i];
  return out.str();
}

std::optional<Algo> from_words(const std::string& words) {
  Algo algo;
  const char* at = words.data();
  const char* const end = at + words.size();
  for (uint64_t& word : algo.data) {
    const auto [stop, error] = std::from_chars(at, end, word, 16);
    if (error != std::errc()) return {};
    if (stop == end) return algo;
    if (*stop != '.') return {};
    at = stop + 1;
  }
  return {};
}

std::string describe(const Algo& algo) {
  struct Attribute {
    const char* name;
    int id;
    size_t bytes;
  };
  static constexpr Attribute kShown[] = {
      {"algo", kConfigId, 4},       {"tile", kConfigTile, 4},        {"stages", kConfigStages, 4},
      {"split", kConfigSplitK, 4},  {"reduce", kConfigReduction, 4}, {"swizzle", kConfigSwizzle, 4},
      {"custom", kConfigCustom, 4}, {"inner", kConfigInnerShape, 2}, {"cluster", kConfigCluster, 2},
  };
  std::ostringstream out;
  for (const Attribute& attribute : kShown) {
    uint32_t value = 0;  // little-endian: two bytes land in its lower half
    size_t written = 0;
    if (api().algo_config_get(&algo, attribute.id, &value, attribute.bytes, &written) != kSuccess) {
      continue;
    }
    out << (out.tellp() > 0 ? " " : "") << attribute.name << '=' << value;
  }
  return out.str();
}

}  // namespace flexq_ft::cublaslt
