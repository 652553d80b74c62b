#include "ft/bench/w6ax_bench.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "flexq_kernels/gpu/dequantize.h"
#include "flexq_kernels/gpu/plain_gemm.h"
#include "ft/bench/w6ax_baselines.h"
#include "ft/bench/w6ax_kernels.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"
#include "ft/kernels/timed_graph.h"

namespace flexq_ft {

namespace {

constexpr const char* kOurs[] = {"stream", "wgmma", "mma", "btc", "weight-only"};
constexpr const char* kTheirs[] = {"cublaslt-int8", "cublaslt-fp16", "cublas-nn"};
constexpr int kFewestLaunches = 10, kMostLaunches = 100;  // of a graph
constexpr double kGraphMicroseconds = 2000;
constexpr int64_t kCheckedTokens = 48;  // at the begin, and as many at the end
constexpr double kCalcDiff = 1e-7;      // between two sums of the same products in fp32
constexpr int kPoison = 0xff;

template <typename List>
bool contains(const List& list, const std::string& name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

// The measurement of one problem.
class Measurement {
 public:
  Measurement(const W6axBenchCase& problem, const W6axBenchOptions& options, Stream stream)
      : case_(problem),
        options_(options),
        stream_(stream),
        operands_(problem, options, stream),
        kernels_(operands_),
        baselines_(problem, options, stream) {
    row_.problem = problem;
  }

  W6axBenchRow run() {
    make_reference();
    std::vector<Contender> finalists;
    for (const std::string& name : options_.implementations) {
      std::vector<Contender> all = contenders(name);
      if (!contains(kOurs, name)) row_.heuristics += static_cast<int>(all.size());
      first_timing(all);
      const size_t kept = std::min(all.size(), static_cast<size_t>(options_.finalists));
      std::move(all.begin(), all.begin() + static_cast<long>(kept), std::back_inserter(finalists));
    }
    take_turns(finalists);
    report(finalists);
    return row_;
  }

 private:
  std::vector<Contender> contenders(const std::string& name) {
    if (contains(kTheirs, name)) {
      try {
        std::vector<Contender> all =
            baselines_.contenders(name, case_, operands_.y(), options_.heuristics);
        if (all.empty()) row_.refused.push_back(name + ": the library has nothing for these sizes");
        return all;
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kOutOfMemory) throw;
        row_.refused.push_back(name + ": " + error.what());
        return {};
      }
    }
    return kernels_.contenders(name, row_.refused);
  }

  // The rows that are compared: all of few tokens, the first and the last of many.
  std::vector<std::pair<int64_t, int64_t>> checked_rows() const {
    if (case_.m <= 2 * kCheckedTokens) return {{0, case_.m}};
    return {{0, kCheckedTokens}, {case_.m - kCheckedTokens, case_.m}};
  }

  void make_reference() {
    operands_.quantize(fg::CodeOrder::kNatural, stream_);
    const fg::Activations x = operands_.activations(fg::CodeOrder::kNatural).view();
    for (const auto& [begin, end] : checked_rows()) {
      fg::Output y;
      y.values = operands_.reference().tensor().rows(begin, end).raw();
      fg::Activations part = x;
      part.codes += begin * fk::group_count(case_.k) * fk::kGroupSize;
      part.scales += begin;
      fk::GemmProblem problem = operands_.problem();
      problem.m = end - begin;
      fg::plain_gemm(y, part, operands_.weight(0), problem, {stream_.handle, false});
    }
    if (contains(options_.implementations, std::string("weight-only"))) make_float_reference();
    cuda::synchronize(stream_);
  }

  // With the weight rounded to fp16, which is within kCalcDiff.
  void make_float_reference() {
    const Buffer weight = device_buffer(DataType::kFp16, {case_.n, case_.k});
    fg::dequantize_int6(weight.data(), fk::FloatType::kFp16, operands_.weight(0), case_.n, case_.k,
                        {stream_.handle, false});
    Buffer y = device_buffer(DataType::kFp32, {case_.m, case_.n});
    if (baselines_.multiply(y.tensor(), operands_.x(), weight.tensor(), stream_)) {
      operands_.float_reference() = std::move(y);
    }
    cuda::synchronize(stream_);  // the weight is still read
  }

  // Empty, or what is wrong with the results.
  std::string fault(const Contender& one) {
    if (!one.ours()) return {};
    for (Buffer* y : {&operands_.y(), &operands_.again()}) {
      cuda::fill(y->data(), kPoison, y->bytes(), stream_);
      kernels_.write_to(*y);
      one.write_x(stream_);
      one.launch(0, false, stream_, false);
      cuda::synchronize(stream_);
    }
    kernels_.write_to(operands_.y());
    for (const auto& [begin, end] : checked_rows()) {
      const auto rows = [begin = begin, end = end](const Buffer& buffer) {
        return buffer.tensor().rows(begin, end);
      };
      const int64_t varying =
          compare_(rows(operands_.y()), rows(operands_.again()), stream_).unequal;
      if (varying != 0) return detail::join("a second run differs in ", varying, " elements");
      const double wrong = compare_(rows(operands_.y()), rows(*one.reference), stream_).calc_diff;
      if (!(wrong <= kCalcDiff)) return detail::join("calc_diff ", wrong);  // NaN is wrong too
    }
    return {};
  }

  // Short launches make longer graphs. At least one of each weight: none is in the cache then.
  int launches(double us) const {
    const int wanted = us > 0 ? static_cast<int>(kGraphMicroseconds / us) : kFewestLaunches;
    return std::max(std::clamp(wanted, kFewestLaunches, kMostLaunches), operands_.rotations());
  }

  std::unique_ptr<TimedGraph> graph_of(const Contender& one, bool programmatic) {
    return std::make_unique<TimedGraph>(
        stream_, launches(one.first_us),
        [&] {
          if (one.write_x) one.write_x(stream_);
        },
        [&](int i) { one.launch(i, true, stream_, programmatic); });
  }

  // A kernel that faults takes the process's device with it: whatever came next would be refused
  // for its fault.
  void check_device(const Contender& one, const std::string& wrong) {
    try {
      cuda::synchronize(stream_);
    } catch (const Error& error) {
      throw Error(ErrorKind::kDevice,
                  detail::join(operands_.problem(), ": ", one.implementation, " ", one.config,
                               " broke the device: ", wrong),
                  error.what(), detail::join("measure without ", one.implementation));
    }
  }

  // Leaves those that are right, the fastest first.
  void first_timing(std::vector<Contender>& all) {
    std::vector<Contender> right;
    for (Contender& one : all) {
      std::string wrong;
      try {
        wrong = fault(one);
        if (wrong.empty()) {
          const auto graph = graph_of(one, one.ours());
          graph->replay(stream_);
          one.first_us = graph->replay(stream_);
        }
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kOutOfMemory) throw;
        wrong = error.what();
      } catch (const std::exception& error) {
        wrong = error.what();
      }
      if (wrong.empty()) {
        right.push_back(std::move(one));
      } else {
        check_device(one, wrong);
        row_.refused.push_back(one.implementation + " " + one.config + ": " + wrong);
      }
    }
    std::stable_sort(right.begin(), right.end(), [](const Contender& a, const Contender& b) {
      return a.first_us < b.first_us;
    });
    all = std::move(right);
  }

  void take_turns(std::vector<Contender>& finalists) {
    std::vector<std::unique_ptr<TimedGraph>> graphs, full;
    for (const Contender& one : finalists) {
      graphs.push_back(graph_of(one, one.ours()));
      full.push_back(one.ours() ? graph_of(one, false) : nullptr);
    }
    for (int replay = 0; replay < options_.replays; ++replay) {
      for (size_t i = 0; i < finalists.size(); ++i) {
        finalists[i].samples.push_back(graphs[i]->replay(stream_));
        if (full[i]) finalists[i].full_edges.push_back(full[i]->replay(stream_));
      }
    }
    if (options_.sustained_s <= 0) return;
    for (size_t i = 0; i < finalists.size(); ++i) {
      const double us = quantile(finalists[i].samples, 0.5) * graphs[i]->launches();
      const int replays = std::max(1, static_cast<int>(options_.sustained_s * 1e6 / us) + 1);
      finalists[i].sustained = graphs[i]->replay(stream_, replays);
    }
  }

  // The fastest of each implementation: where it was asked for, by the sustained time.
  void report(const std::vector<Contender>& finalists) {
    const auto time = [](const Contender& one) {
      return one.sustained > 0 ? one.sustained : quantile(one.samples, 0.5);
    };
    for (const std::string& name : options_.implementations) {
      const Contender* best = nullptr;
      for (const Contender& one : finalists) {
        if (one.implementation != name) continue;
        if (best == nullptr || time(one) < time(*best)) best = &one;
      }
      if (best == nullptr) continue;
      row_.times.push_back({name, best->config, best->note, quantile(best->samples, 0.5),
                            quantile(best->samples, 0.1), quantile(best->samples, 0.9),
                            best->full_edges.empty() ? 0 : quantile(best->full_edges, 0.5),
                            best->sustained});
    }
  }

  W6axBenchCase case_;
  W6axBenchOptions options_;
  Stream stream_;
  Operands operands_;
  W6axKernels kernels_;
  Baselines baselines_;
  gpu::Comparer compare_;
  W6axBenchRow row_;
};

class QueueBench final : public W6axBench {
 public:
  explicit QueueBench(const W6axBenchOptions& options) : options_(options) {}

  W6axBenchRow run(const W6axBenchCase& problem) override {
    return Measurement(problem, options_, queue_.stream()).run();
  }

 private:
  W6axBenchOptions options_;
  cuda::Queue queue_;
};

}  // namespace

std::unique_ptr<W6axBench> make_w6ax_bench(const W6axBenchOptions& options) {
  for (const std::string& name : options.implementations) {
    if (contains(kOurs, name) || contains(kTheirs, name)) continue;
    throw Error(
        ErrorKind::kConfig, "there is no implementation '" + name + "'", {},
        "use stream, wgmma, mma, btc, weight-only, cublaslt-int8, cublaslt-fp16, cublas-nn");
  }
  FLEXQ_FT_CHECK(options.finalists > 0 && options.replays > 0, "options");
  if (cuda::device_count() == 0) {
    throw Error(ErrorKind::kDevice, "there is no GPU to measure on", cuda::no_device_cause());
  }
  return std::make_unique<QueueBench>(options);
}

}  // namespace flexq_ft
