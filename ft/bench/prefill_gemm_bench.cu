// W6Ax GEMM of many tokens on this GPU, beside cuBLASLt FP16 of the same shape in the same run:
//
//   prefill_gemm_bench [--m 512,2048] [--shape 4096x11008] [--config "tokens=192 cluster=2"]
//                      [--all] [--quick]
//
// Shapes are the linear layers of LLaMA, LLaMA-2 and OPT, or the one that is named; in those marked
// * activations have 8 bits, else 6. Operands are random; weights rotate through more than the L2
// cache holds. Each config is first compared, to the last bit, with a naive kernel at sampled
// outputs; then all are timed for moments in turns, so that none has a cooler GPU than another. The
// fastest runs for a second, in turns with cuBLASLt (0.6 s); the line below has the moment of every
// tile's best config. Up to 256 tokens: the best of five replays of 40 launches that depend on each
// other, beside cuBLASLt INT8, and the six best configs. --all: those of all configs. --quick: a
// fifth of the seconds. The GEMM alone is timed: activations are quantised, y is fp16.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexq_kernels/bench/gemm_bench.cuh"
#include "flexq_kernels/gpu/mma_gemm.h"
#include "flexq_kernels/gpu/wgmma_gemm.h"
#include "ft/kernels/cublaslt_gemm.h"
#include "ft/kernels/timed_graph.h"

namespace {

using namespace flexq_kernels;
using namespace flexq_kernels::bench;

struct Options {
  std::vector<int64_t> tokens = {512, 2048};
  std::string shape;
  std::string config;
  bool all = false;
  double seconds = 1;
};

// ---- A kernel that hangs ----

std::string g_last_checked;  // config, whose check or timing is under way, or one behind it

void out_of_time(int) {
  const std::string& name = g_last_checked;
  _exit(write(2, name.data(), name.size()) > 0 && write(2, " hangs\n", 7) > 0 ? 3 : 4);
}

// ---- The bench ----

struct Row {
  const Shape* shape;
  int64_t m;
  double tops, ratio;  // ratio 0: cuBLASLt was not there
};

constexpr int64_t kFewTokens = 256;

struct Candidate {
  std::string name;
  std::string tile;  // of the name
  int slices = 1;    // whose sums are added
  std::function<void(const gpu::Output&, const gpu::Activations&, const gpu::Weight&)> run;
  double us = 1e30;  // the best of its moments
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        timer_(stream()),
        codes_(size_t{520} << 20, Fill::kBits),
        row_scales_(size_t{40} << 20, Fill::kScaleHalf),
        tokens_(size_t{8192} * 28672, Fill::kInt8),
        token_scales_(size_t{8192} * 4 * 224, Fill::kScaleFloat),
        y_(size_t{8192} * 28672 * 2, Fill::kBits) {
    check_cuda(cudaMalloc(&wrong_, 4), "memory");
    cut_tiles_ =
        std::make_unique<Pool>(gpu::wgmma_workspace_bytes(gpu::current_device()), Fill::kBits);
    check_cuda(cudaMemset(cut_tiles_->at<void>(), 0, cut_tiles_->bytes()), "workspace");
    try {
      cublas_ = std::make_unique<flexq_ft::cublaslt::Context>();
      half_weights_ = std::make_unique<Pool>(size_t{1000} << 20, Fill::kNormalHalf);
      half_tokens_ = std::make_unique<Pool>(size_t{8192} * 28672 * 2, Fill::kNormalHalf);
      workspace_ = std::make_unique<Pool>(flexq_ft::cublaslt::kWorkspaceBytes, Fill::kBits);
    } catch (const std::exception& error) {
      std::printf("no cuBLASLt: %s\n", error.what());
    }
  }

  void run_shape(const Shape& shape) {
    tokens_.refill(shape.wide ? Fill::kInt8 : Fill::kInt6);
    for (const int64_t m : options_.tokens) run(shape, m);
  }

  // Of the bars: all shapes, and those that are not of the 7B model.
  void summary() const {
    for (const int64_t m : options_.tokens) {
      double tops = 0, ratio = 0, least = 1e9, least_ratio = 1e9, large = 0, least_large = 1e9;
      int count = 0, large_count = 0;
      for (const Row& row : rows_) {
        if (row.m != m) continue;
        ++count;
        tops += std::log(row.tops);
        ratio += std::log(row.ratio);
        least = std::min(least, row.tops);
        least_ratio = std::min(least_ratio, row.ratio);
        if (std::strcmp(row.shape->model, "LLaMA-7B") == 0) continue;
        ++large_count;
        large += std::log(row.tops);
        least_large = std::min(least_large, row.tops);
      }
      if (count == 0) continue;
      std::printf("M %5lld: all geomean %.0f min %.0f TOPS, x %s geomean %.3f min %.3f",
                  static_cast<long long>(m), std::exp(tops / count), least,
                  m <= kFewTokens ? "INT8" : "FP16", std::exp(ratio / count), least_ratio);
      if (large_count > 0) {
        std::printf("; 13B and larger geomean %.0f min %.0f TOPS", std::exp(large / large_count),
                    least_large);
      }
      std::printf("\n");
    }
  }

 private:
  static cudaStream_t stream() {
    static cudaStream_t stream = [] {
      cudaStream_t made;
      check_cuda(cudaStreamCreate(&made), "stream");
      return made;
    }();
    return stream;
  }

  std::vector<Candidate> candidates(const GemmProblem& problem) const {
    std::vector<Candidate> out;
    const gpu::Launch how{stream(), true};
    const auto add = [&](const char* family, const auto& config, int slices, const auto& gemm) {
      std::ostringstream name, tile;
      name << family << " " << config;
      tile << family << " " << name.str().substr(0, name.str().find("cluster"));
      out.push_back(
          {name.str(), tile.str(), slices, [=](const auto& y, const auto& x, const auto& w) {
             gemm(y, x, w, problem, config, how);
           }});
    };
    const auto wgmma = [workspace = cut_tiles_.get()](
                           const auto& y, const auto& x, const auto& w, const GemmProblem& problem,
                           const gpu::WgmmaConfig& config, const gpu::Launch& how) {
      gpu::wgmma_gemm(y, x, w, problem, config, workspace->at<void>(), how);
    };
    for (const auto& config : gpu::wgmma_configs(problem, gpu::current_device())) {
      add("wgmma", config, config.sliced ? config.cluster : 1, wgmma);
    }
    for (const auto& config : gpu::mma_configs(problem, gpu::current_device())) {
      add("mma", config, 1, &gpu::mma_gemm);
    }
    return out;
  }

  // The weights of a turn: distinct ones, as many as the pools hold.
  gpu::Weight weight(const Shape& shape, int turn) const {
    const size_t bytes = static_cast<size_t>(packed_bytes(shape.n, shape.k));
    const size_t copies = std::max<size_t>(1, std::min<size_t>(16, codes_.bytes() / bytes));
    const size_t at = static_cast<size_t>(turn) % copies;
    return {codes_.at<uint8_t>(at * bytes), row_scales_.at<uint16_t>(at * bytes / 48)};
  }

  bool right(const Candidate& candidate, const Shape& shape, const GemmProblem& problem,
             const gpu::Activations& x) {
    constexpr unsigned kSeconds = 20;  // for a check and all timings behind it
    g_last_checked = candidate.name;
    alarm(kSeconds);
    check_cuda(cudaMemsetAsync(y_.at<void>(), 0xff, static_cast<size_t>(problem.m * problem.n) * 2,
                               stream()),
               "poison");
    const gpu::Weight w = weight(shape, 1);
    candidate.run({y_.at<void>(), FloatType::kFp16}, x, w);
    check_cuda(cudaMemsetAsync(wrong_, 0, 4, stream()), "flag");
    constexpr int kSamples = 4096;
    sample<<<kSamples / 64, 64, 0, stream()>>>(
        wrong_, y_.at<__half>(), x.codes, x.scales, x.scale_stride, w.codes,
        reinterpret_cast<const __half*>(w.scales), problem.m, problem.n, group_count(problem.k),
        candidate.slices, kSamples);
    int wrong = 0;
    check_cuda(cudaMemcpyAsync(&wrong, wrong_, 4, cudaMemcpyDeviceToHost, stream()), "flag");
    check_cuda(cudaStreamSynchronize(stream()), candidate.name.c_str());
    if (wrong > 0) {
      std::printf("  %s: %d of %d samples are WRONG\n", candidate.name.c_str(), wrong, kSamples);
    }
    return wrong == 0;
  }

  void run(const Shape& shape, int64_t m) {
    const GemmProblem problem{m, shape.n, shape.k, shape.wide ? 8 : 6};
    const gpu::Activations x{tokens_.at<int8_t>(), token_scales_.at<float>(),
                             gpu::scale_stride_of(m), gpu::CodeOrder::kNatural};
    const gpu::Output y{y_.at<void>(), FloatType::kFp16};
    const double operations = 2.0 * static_cast<double>(m * shape.n) * static_cast<double>(shape.k);
    std::vector<Candidate> all;
    for (const Candidate& candidate : candidates(problem)) {
      if (candidate.name.find(options_.config) == std::string::npos) continue;
      if (right(candidate, shape, problem, x)) {
        all.push_back(candidate);
      } else {
        ++failures;
      }
    }
    if (all.empty()) return;
    const auto launch = [&](const Candidate& candidate) -> Run {
      return [=, run = candidate.run](int turn) { run(y, x, weight(shape, turn)); };
    };
    const std::string guess = all[0].name;
    if (m <= kFewTokens) return run_few(shape, m, all, guess);
    for (int i = 0; i < 3; ++i) {
      for (Candidate& candidate : all) {
        // Those that are far behind need no second look.
        if (i > 0 && candidate.us > 1.3 * least(all).us) continue;
        candidate.us = std::min(candidate.us, timer_.time(launch(candidate), 0.003));
      }
    }
    const Candidate& best = least(all);
    report(shape, m, operations, launch(best), best.name + (best.name == guess ? " (guess)" : ""));
    print_moments(all, operations);
  }

  // Few tokens: graphs of launches that depend on each other, beside cuBLASLt INT8; microseconds.
  void run_few(const Shape& shape, int64_t m, std::vector<Candidate>& all,
               const std::string& guess) {
    const gpu::Activations x{tokens_.at<int8_t>(), token_scales_.at<float>(),
                             gpu::scale_stride_of(m), gpu::CodeOrder::kNatural};
    const gpu::Output y{y_.at<void>(), FloatType::kFp16};
    const flexq_ft::Stream on{stream(), nullptr};
    const auto time = [&](const Run& run) {
      flexq_ft::TimedGraph graph(on, 40, [] {}, run);
      graph.replay(on);
      double us = 1e30;
      for (int i = 0; i < 5; ++i) us = std::min(us, graph.replay(on));
      return us;
    };
    for (Candidate& candidate : all) {
      candidate.us = time([&](int turn) { candidate.run(y, x, weight(shape, turn)); });
    }
    double theirs = 1e30;
    if (cublas_) {
      flexq_ft::GemmProblem integers;
      integers.scheme = flexq_ft::Scheme::kW8A8;
      integers.dtype = flexq_ft::DataType::kInt8;
      integers.m = m;
      integers.n = shape.n;
      integers.k = shape.k;
      const flexq_ft::cublaslt::Gemm gemm(*cublas_, integers);
      const auto bytes = static_cast<size_t>(shape.n * shape.k);
      const size_t copies = std::min<size_t>(16, codes_.bytes() / bytes);
      for (const auto& heuristic : gemm.heuristics(24)) {
        theirs =
            std::min(theirs, time([&](int turn) {
                       gemm.run(y_.at<void>(), tokens_.at<void>(),
                                codes_.at<void>(static_cast<size_t>(turn) % copies * bytes),
                                heuristic.algo, workspace_->at<void>(), workspace_->bytes(), on);
                     }));
      }
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Candidate& a, const Candidate& b) { return a.us < b.us; });
    const double bytes = static_cast<double>(shape.n * shape.k) * 6.125 / 8;
    std::printf("%5lldx%-5lld%s M %2lld %6.2f us %.2f TB/s INT8 %6.2f x %.3f %s%s |",
                static_cast<long long>(shape.n), static_cast<long long>(shape.k),
                shape.wide ? "*" : " ", static_cast<long long>(m), all[0].us,
                bytes / all[0].us * 1e-6, theirs, theirs / all[0].us, all[0].name.c_str(),
                all[0].name == guess ? " (guess)" : "");
    for (size_t i = 1; i < all.size() && (i < 6 || options_.all); ++i) {
      std::printf(" %s %.2f;", all[i].name.c_str(), all[i].us);
    }
    std::printf("\n");
    std::fflush(stdout);
    rows_.push_back(
        {&shape, m,
         2.0 * static_cast<double>(m * shape.n) * static_cast<double>(shape.k) / all[0].us * 1e-6,
         theirs / all[0].us});
  }

  static const Candidate& least(const std::vector<Candidate>& all) {
    return *std::min_element(all.begin(), all.end(),
                             [](const Candidate& a, const Candidate& b) { return a.us < b.us; });
  }

  // Of the best config of every tile, or of all.
  void print_moments(const std::vector<Candidate>& all, double operations) const {
    std::string line;
    for (const Candidate& candidate : all) {
      const bool beaten = std::any_of(all.begin(), all.end(), [&](const Candidate& other) {
        return other.tile == candidate.tile && other.us < candidate.us;
      });
      if (beaten && !options_.all) continue;
      std::ostringstream text;
      text << "  " << candidate.name << ": " << static_cast<int>(operations / candidate.us * 1e-6);
      line += text.str();
    }
    std::printf("    moments, TOPS:%s\n", line.c_str());
  }

  void report(const Shape& shape, int64_t m, double operations, const Run& best,
              const std::string& name) {
    std::unique_ptr<flexq_ft::cublaslt::Gemm> gemm;
    const Run half = half_precision(shape, m, gemm);
    double ours = 0, theirs = 0, mhz = 0, their_mhz = 0;
    for (int i = 0; i < 2; ++i) {
      ours += timer_.time(best, options_.seconds / 2) / 2;
      mhz = timer_.megahertz();
      if (!half) continue;
      theirs += timer_.time(half, options_.seconds * 0.3) / 2;
      their_mhz = timer_.megahertz();
    }
    std::printf(
        "%-11s %5lld x %5lld%s M %4lld  %9.1f us %6.0f TOPS at %4.0f MHz | FP16 %9.1f us %5.0f at "
        "%4.0f MHz | x %.3f  %s\n",
        shape.model, static_cast<long long>(shape.n), static_cast<long long>(shape.k),
        shape.wide ? "*" : " ", static_cast<long long>(m), ours, operations / ours * 1e-6, mhz,
        theirs, theirs > 0 ? operations / theirs * 1e-6 : 0, their_mhz, theirs / ours,
        name.c_str());
    std::fflush(stdout);
    rows_.push_back({&shape, m, operations / ours * 1e-6, theirs / ours});
  }

  // The fastest of cuBLASLt's first algorithms, on weights that rotate too; empty without it.
  Run half_precision(const Shape& shape, int64_t m,
                     std::unique_ptr<flexq_ft::cublaslt::Gemm>& gemm) {
    if (!cublas_) return {};
    flexq_ft::GemmProblem problem;
    problem.m = m;
    problem.n = shape.n;
    problem.k = shape.k;
    problem.rounded = true;
    gemm = std::make_unique<flexq_ft::cublaslt::Gemm>(*cublas_, problem);
    const size_t bytes = static_cast<size_t>(shape.n * shape.k) * 2;
    const size_t copies = std::min<size_t>(8, half_weights_->bytes() / bytes);
    Run best;
    double least = 1e30;
    for (const auto& heuristic : gemm->heuristics(8)) {
      flexq_ft::cublaslt::Gemm* const product = gemm.get();
      const Run run = [=, algo = heuristic.algo](int turn) {
        product->run(y_.at<void>(), half_tokens_->at<void>(),
                     half_weights_->at<void>(static_cast<size_t>(turn) % copies * bytes), algo,
                     workspace_->at<void>(), workspace_->bytes(), {stream(), nullptr});
      };
      const double us = timer_.time(run, 0.005);
      if (us >= least) continue;
      least = us;
      best = run;
    }
    return best;
  }

  const Options& options_;
  Timer timer_;
  Pool codes_, row_scales_, tokens_, token_scales_, y_;
  std::unique_ptr<flexq_ft::cublaslt::Context> cublas_;
  std::unique_ptr<Pool> cut_tiles_;  // workspace of the wgmma family
  std::unique_ptr<Pool> half_weights_, half_tokens_, workspace_;
  int* wrong_ = nullptr;
  std::vector<Row> rows_;

 public:
  int failures = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) throw std::invalid_argument(name + " needs a value");
      return argv[++i];
    };
    if (name == "--m") {
      options.tokens.clear();
      std::istringstream list(value());
      for (std::string m; std::getline(list, m, ',');) options.tokens.push_back(std::stoll(m));
    } else if (name == "--shape") {
      options.shape = value();
    } else if (name == "--config") {
      options.config = value();
    } else if (name == "--all") {
      options.all = true;
    } else if (name == "--quick") {
      options.seconds = 0.2;
    } else {
      throw std::invalid_argument("unknown option " + name +
                                  "; there are --m --shape --config --all --quick");
    }
  }
  for (const int64_t m : options.tokens) {
    if (m < 1 || m > 8192) throw std::invalid_argument("--m takes 1 to 8192");
  }
  return options;
}

// Those of the list, or the one that is named; its activations have 6 bits if it is not listed.
std::vector<Shape> shapes(const Options& options) {
  constexpr int64_t kMostWeights = int64_t{500} << 20, kMostValues = int64_t{8192} * 28672;
  std::vector<Shape> out;
  for (const Shape& shape : kShapes) {
    const std::string name = std::to_string(shape.n) + "x" + std::to_string(shape.k);
    if (options.shape.empty() || options.shape == name) out.push_back(shape);
  }
  if (!out.empty()) return out;
  long long n = 0, k = 0;
  char more = 0;
  if (std::sscanf(options.shape.c_str(), "%lldx%lld%c", &n, &k, &more) != 2 || n < 1 || k < 1 ||
      n > kMostWeights / k) {
    throw std::invalid_argument("--shape \"" + options.shape + "\" is not NxK of up to " +
                                std::to_string(kMostWeights) + " weights");
  }
  for (const int64_t m : options.tokens) {
    if (m * std::max(n, k) > kMostValues) {
      throw std::invalid_argument("--shape " + options.shape + " takes up to " +
                                  std::to_string(kMostValues / std::max(n, k)) + " tokens");
    }
  }
  return {{"other", n, k, false}};
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    signal(SIGALRM, out_of_time);
    cudaDeviceProp device;
    check_cuda(cudaGetDeviceProperties(&device, 0), "GPU");
    std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
    Bench bench(options);
    const std::vector<Shape> all = shapes(options);
    for (const Shape& shape : all) bench.run_shape(shape);
    bench.summary();
    return bench.failures == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "prefill_gemm_bench: %s\n", error.what());
    return 2;
  }
}
