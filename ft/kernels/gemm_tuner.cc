#include "ft/kernels/gemm_tuner.h"

#include <algorithm>

#include "ft/core/cuda.h"
#include "ft/kernels/gemm_backend.h"
#include "ft/kernels/gemm_tuner_gpu.h"
#include "ft/kernels/timed_graph.h"

namespace flexq_ft {

namespace {

constexpr int kMostLaunches = 256;
constexpr int64_t kOneOrderTokens = 16;  // up to which a weight's products add up in one order
constexpr double kCalcDiff = 1e-7;       // between two sums of the same products in fp32
constexpr int kPoison = 0xff;            // NaN in fp32, -1 in int32

// Random operands of a weight's products: enough weights that each is read from memory.
struct Operands {
  int rotations;
  int launches;  // of a graph: at least one of each weight
  Buffer weights, x;
  Buffer y, again, reference;

  Operands(const TuneWeight& p, const TuneOptions& options, DataType w_dtype, DataType y_dtype,
           Stream stream) {
    const int64_t bytes = p.n * p.k * static_cast<int64_t>(size_of(w_dtype));
    const int64_t wanted = (options.cold_bytes + bytes - 1) / bytes;
    rotations = static_cast<int>(std::clamp<int64_t>(wanted, 2, kMostLaunches));
    launches = std::max(options.launches, rotations);
    const int64_t most = *std::max_element(p.ms.begin(), p.ms.end());
    weights = buffer(w_dtype, {rotations * p.n, p.k});
    x = buffer(p.dtype, {most, p.k});
    for (Buffer* out : {&y, &again, &reference}) *out = buffer(y_dtype, {most, p.n});
    gpu::fill_random(weights.tensor(), 1, stream);
    gpu::fill_random(x.tensor(), 2, stream);
  }

  static Buffer buffer(DataType dtype, Shape shape) {
    return Buffer(dtype, shape, MemoryKind::kWorkspace, Device::kCuda);
  }
};

struct Timed {
  GemmCandidate candidate;
  double first_us = 0;  // in the first timing
  std::vector<double> samples;
};

// One m of a weight.
struct Measured {
  GemmProblem problem;
  std::vector<Timed> timed;  // those that are right, the fastest first
  TuneResult result;
};

// The measurement of one weight.
class WeightTuner {
 public:
  WeightTuner(const TuneWeight& weight, const TuneOptions& options, Stream stream)
      : weight_(weight),
        options_(options),
        stream_(stream),
        backend_(limits(weight)),
        operands_(weight, options, w_dtype(), y_dtype(), stream) {}

  std::vector<TuneResult> run() {
    std::vector<Measured> all;
    for (int64_t m : weight_.ms) {
      all.push_back(first_timing({weight_.scheme, weight_.dtype, m, weight_.n, weight_.k}));
    }
    const int warps = common_warps(all);
    std::vector<TuneResult> results;
    for (Measured& one : all) {
      const bool held = warps != 0 && one.problem.m <= kOneOrderTokens;
      results.push_back(finished(std::move(one), held ? warps : 0));
    }
    return results;
  }

 private:
  static GpuGemmLimits limits(const TuneWeight& weight) {
    GpuGemmLimits out;
    out.max_tokens = std::max<int64_t>(1024, *std::max_element(weight.ms.begin(), weight.ms.end()));
    out.largest_w8a16 = weight.scheme == Scheme::kW8A16 ? weight.n * weight.k : 0;
    return out;
  }

  DataType w_dtype() const {
    return weight_.scheme == Scheme::kFloat ? weight_.dtype : DataType::kInt8;
  }
  DataType y_dtype() const {
    return weight_.scheme == Scheme::kW8A8 ? DataType::kInt32 : DataType::kFp32;
  }

  void launch(const GemmCandidate& candidate, const Buffer& y, int64_t m, int rotation) {
    const Tensor all = operands_.weights.tensor();
    const int64_t first = rotation % operands_.rotations * weight_.n;
    backend_.run(y.tensor().rows(0, m), operands_.x.tensor().rows(0, m),
                 all.rows(first, first + weight_.n), weight_.scheme, candidate, stream_);
  }

  void launch_poisoned(const GemmCandidate& candidate, const Buffer& y, int64_t m) {
    cuda::fill(y.data(), kPoison, y.tensor().rows(0, m).bytes(), stream_);
    launch(candidate, y, m, 0);
    cuda::synchronize(stream_);
  }

  // Empty, or what is wrong with a candidate's results. The first candidate is the reference.
  std::string fault(const GemmCandidate& candidate, int64_t m, bool is_reference) {
    const Buffer& y = is_reference ? operands_.reference : operands_.y;
    launch_poisoned(candidate, y, m);
    launch_poisoned(candidate, operands_.again, m);
    const auto rows = [m](const Buffer& buffer) { return buffer.tensor().rows(0, m); };
    const int64_t varying = compare_(rows(y), rows(operands_.again), stream_).unequal;
    if (varying != 0) return detail::join("a second run differs in ", varying, " elements");
    const gpu::Difference wrong = compare_(rows(y), rows(operands_.reference), stream_);
    const bool exact = weight_.scheme == Scheme::kW8A8;
    // Not "greater": a NaN is wrong too.
    if (!(wrong.calc_diff <= kCalcDiff) || (exact && wrong.unequal != 0)) {
      return detail::join("calc_diff ", wrong.calc_diff, ", ", wrong.unequal, " elements differ");
    }
    return {};
  }

  Measured first_timing(const GemmProblem& problem) {
    Measured out{problem, {}, {}};
    std::vector<GemmCandidate> candidates =
        backend_.library_candidates(problem, options_.heuristics);
    out.result.returned = static_cast<int>(candidates.size());
    for (GemmCandidate& ours : backend_.skinny_candidates(problem)) {
      candidates.push_back(std::move(ours));
      ++out.result.skinny;
    }
    for (const GemmCandidate& candidate : candidates) {
      std::string wrong;
      try {
        wrong = fault(candidate, problem.m, out.timed.empty());
        if (wrong.empty()) out.timed.push_back({candidate, one_timing(candidate, problem.m), {}});
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kOutOfMemory) throw;
        wrong = error.what();
      }
      if (wrong.empty()) continue;
      const std::string shown = candidate.skinny ? candidate.config() : candidate.note();
      out.result.refused.push_back(candidate.kernel() + " " + shown + ": " + wrong);
    }
    std::stable_sort(out.timed.begin(), out.timed.end(),
                     [](const Timed& a, const Timed& b) { return a.first_us < b.first_us; });
    return out;
  }

  double one_timing(const GemmCandidate& candidate, int64_t m) {
    TimedGraph graph(
        stream_, operands_.launches, [] {}, [&](int i) { launch(candidate, operands_.y, m, i); });
    graph.replay(stream_);
    return graph.replay(stream_);
  }

  // The order in which all products of few tokens add up, 0: free. Integers need none. Batch 1
  // counts as much as all the other sizes together.
  int common_warps(const std::vector<Measured>& all) const {
    if (weight_.scheme == Scheme::kW8A8) return 0;
    int best = 0;
    double best_score = 0;
    for (int warps : {8, 4}) {
      double score = 0;
      bool everywhere = true;
      int sizes = 0;
      for (const Measured& one : all) sizes += one.problem.m <= kOneOrderTokens;
      if (sizes == 0) return 0;
      for (const Measured& one : all) {
        if (one.problem.m > kOneOrderTokens) continue;
        const auto fastest = std::find_if(one.timed.begin(), one.timed.end(), of_warps(warps));
        everywhere = everywhere && fastest != one.timed.end();
        if (!everywhere) break;
        const int weight = one.problem.m == 1 ? std::max(1, sizes - 1) : 1;
        score += weight * fastest->first_us / one.timed.front().first_us;
      }
      if (!everywhere || (best != 0 && score >= best_score)) continue;
      best = warps;
      best_score = score;
    }
    return best;
  }

  struct OfWarps {
    int warps;  // 0: any candidate
    bool operator()(const Timed& one) const {
      return warps == 0 || (one.candidate.skinny && one.candidate.skinny->warps == warps);
    }
  };
  static OfWarps of_warps(int warps) { return {warps}; }

  // Statistics of the fastest, taken in turn, and the row. warps: 0, or those that may win; then
  // the fastest of the library is measured too, to be seen in the note.
  TuneResult finished(Measured one, int warps) {
    std::vector<Timed> last;
    for (Timed& timed : one.timed) {
      if (static_cast<int>(last.size()) == options_.finalists) break;
      if (of_warps(warps)(timed)) last.push_back(std::move(timed));
    }
    FLEXQ_FT_CHECK(!last.empty(), "nothing can do ", one.problem);
    if (warps != 0) {
      const auto library = std::find_if(one.timed.begin(), one.timed.end(),
                                        [](const Timed& t) { return !t.candidate.skinny; });
      if (library != one.timed.end()) last.push_back(std::move(*library));
    }
    std::vector<std::unique_ptr<TimedGraph>> graphs;
    for (Timed& timed : last) {
      graphs.push_back(std::make_unique<TimedGraph>(
          stream_, operands_.launches, [] {},
          [&](int i) { launch(timed.candidate, operands_.y, one.problem.m, i); }));
    }
    for (int replay = 0; replay < options_.replays; ++replay) {
      for (size_t i = 0; i < last.size(); ++i) {
        last[i].samples.push_back(graphs[i]->replay(stream_));
      }
    }
    return result_of(std::move(one), std::move(last), warps);
  }

  static TuneResult result_of(Measured one, std::vector<Timed> last, int warps) {
    const auto median = [](const Timed& timed) { return quantile(timed.samples, 0.5); };
    std::stable_sort(last.begin(), last.end(),
                     [&](const Timed& a, const Timed& b) { return median(a) < median(b); });
    TuneResult result = std::move(one.result);
    for (const Timed& timed : last) {
      const GemmCandidate& c = timed.candidate;
      result.times.push_back({c.kernel(), c.config(), c.note(), median(timed),
                              quantile(timed.samples, 0.1), quantile(timed.samples, 0.9)});
    }
    const Timed& winner = *std::find_if(last.begin(), last.end(), of_warps(warps));
    const GemmCandidate& c = winner.candidate;
    result.row = {one.problem, c.kernel(), c.config(), median(winner), c.note()};
    const auto other = std::find_if(last.begin(), last.end(), [&](const Timed& t) {
      return t.candidate.kernel() != c.kernel();
    });
    if (other != last.end()) {
      char us[32];
      std::snprintf(us, sizeof(us), "%.2f", median(*other));
      std::string& note = result.row.note;
      note += (note.empty() ? "" : " ") + other->candidate.kernel() + "_us=" + us;
    }
    return result;
  }

  TuneWeight weight_;
  TuneOptions options_;
  Stream stream_;
  GemmBackend backend_;
  Operands operands_;
  gpu::Comparer compare_;
};

class QueueTuner final : public GemmTuner {
 public:
  explicit QueueTuner(const TuneOptions& options)
      : options_(options),
        table_(cuda::device_info(cuda::current_device()).name, cublaslt::library().version) {}

  std::vector<TuneResult> tune(const TuneWeight& weight) override {
    if (weight.ms.empty()) return {};
    for (int64_t m : weight.ms) {
      if (m_bucket(m) == m) continue;
      throw Error(ErrorKind::kConfig, detail::join("m ", m, " is not a power of two"), {},
                  "a row of a table serves all m up to its own");
    }
    return WeightTuner(weight, options_, queue_.stream()).run();
  }

  GemmTable empty_table() const override { return table_; }

 private:
  TuneOptions options_;
  cuda::Queue queue_;
  GemmTable table_;
};

}  // namespace

std::unique_ptr<GemmTuner> make_gemm_tuner(const TuneOptions& options) {
  FLEXQ_FT_CHECK(options.finalists > 0 && options.replays > 0 && options.launches > 0, "options");
  if (cuda::device_count() == 0) {
    throw Error(ErrorKind::kDevice, "there is no GPU to measure on", cuda::no_device_cause());
  }
  return std::make_unique<QueueTuner>(options);
}

}  // namespace flexq_ft
