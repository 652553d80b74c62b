// flexq_weight_only_gemm_bench: weight-only products on the linears of LLaMA, LLaMA-2 and OPT
// models, and dequantising.
//
//   flexq_weight_only_gemm_bench [--all] [--bf16] [--m 1,8] [--shape NxK]
//
//   --all  a line for every config        --m      numbers of tokens (1,8,16,32,64)
//   --bf16 tokens of bf16, not fp16       --shape  one shape instead of all
//
// A measurement is the replay of a CUDA graph of 20 or more programmatic launches (0.6 ms or more),
// whose weights rotate over more than 400 MB, so that the L2 cache is cold for them: median of 9.
// Codes and tokens are random. The floor is the weight's bytes (codes and scales, once) at 3.05
// TB/s, the target max(1.05 floor, floor + 1.3 us). Results are not compared here: that is for the
// tests.
#include <unistd.h>

#include <cmath>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "flexq_kernels/bench/gemm_bench.cuh"
#include "flexq_kernels/gpu/dequantize.h"
#include "flexq_kernels/gpu/weight_only_gemm.h"

namespace flexq_kernels::bench {

namespace {

constexpr double kColdBytes = 400e6, kGraphUs = 600, kFloorTbps = 3.05;

struct Options {
  bool all = false;
  FloatType type = FloatType::kFp16;
  std::vector<int64_t> tokens = {1, 8, 16, 32, 64};
  std::vector<Shape> shapes{std::begin(kShapes), std::end(kShapes)};
};

double weight_bytes(int64_t n, int64_t k) {
  return static_cast<double>(n) * static_cast<double>(k) * 6.125 / 8;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    check_cuda(cudaStreamCreate(&stream_), "stream");
    check_cuda(cudaEventCreate(&begin_), "event");
    check_cuda(cudaEventCreate(&end_), "event");
    check_cuda(cudaDeviceSynchronize(), "random data");
  }

  void run() {
    for (const Shape& shape : options_.shapes) {
      for (const int64_t m : options_.tokens) run_problem({m, shape.n, shape.k, 16});
      run_dequantize(shape);
    }
    for (const auto& [m, log] : logs_) {
      std::printf("m=%-2d of target, the best configs: geometric mean %.3f\n", static_cast<int>(m),
                  std::exp(log / static_cast<double>(options_.shapes.size())));
    }
  }

 private:
  gpu::Weight weight(int64_t n, int64_t k, int turn) const {
    const auto bytes = static_cast<size_t>(packed_bytes(n, k)), scales = bytes / 48;
    const auto turns = static_cast<size_t>(turn);
    return {pool_.at<uint8_t>(turns * bytes),
            scales_.at<uint16_t>(turns % (scales_.bytes() / scales) * scales)};
  }

  // us of one of the launches of a graph of them.
  double measure(int64_t n, int64_t k, const std::function<void(const gpu::Weight&)>& launch) {
    const double floor = weight_bytes(n, k) / kFloorTbps / 1e6;
    const int rotation = static_cast<int>(kColdBytes / static_cast<double>(packed_bytes(n, k))) + 2;
    const int count = std::max({20, rotation, static_cast<int>(kGraphUs / floor)});
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < count; ++i) launch(weight(n, k, i % rotation));
    check_cuda(cudaStreamEndCapture(stream_, &graph), "capture");
    check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
    std::vector<double> us;
    for (int i = -2; i < 9; ++i) {
      check_cuda(cudaEventRecord(begin_, stream_), "event");
      check_cuda(cudaGraphLaunch(executable, stream_), "graph");
      check_cuda(cudaEventRecord(end_, stream_), "event");
      check_cuda(cudaEventSynchronize(end_), "replay of a graph");
      float ms = 0;
      check_cuda(cudaEventElapsedTime(&ms, begin_, end_), "time");
      if (i >= 0) us.push_back(static_cast<double>(ms) * 1e3 / count);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
  }

  void run_problem(const GemmProblem& p) {
    const double floor = weight_bytes(p.n, p.k) / kFloorTbps / 1e6;
    const double target = std::max(1.05 * floor, floor + 1.3);
    double best = 1e9, first = 0;
    std::string best_text;
    for (const auto& config : gpu::weight_only_configs(p, gpu::current_device())) {
      const double us = measure(p.n, p.k, [&](const gpu::Weight& w) {
        gpu::weight_only_gemm({y_.at<void>(), options_.type}, {x_.at<void>(), options_.type}, w, p,
                              config, {stream_, true});
      });
      std::ostringstream text;
      text << config;
      if (options_.all) std::printf("    %-32s %7.2f us\n", text.str().c_str(), us);
      if (first == 0) first = us;
      if (us < best) best = us, best_text = text.str();
    }
    logs_[p.m] += std::log(best / target);
    std::printf("%5d x %-5d m=%-2d %7.2f us  target x %.3f  floor x %.3f  default %+.1f%%  %s\n",
                static_cast<int>(p.n), static_cast<int>(p.k), static_cast<int>(p.m), best,
                best / target, best / floor, 100 * (first / best - 1), best_text.c_str());
    std::fflush(stdout);
  }

  void run_dequantize(const Shape& s) {
    const double us = measure(s.n, s.k, [&](const gpu::Weight& w) {
      gpu::dequantize_int6(target_.at<void>(), options_.type, w, s.n, s.k, {stream_, true});
    });
    const double bytes = weight_bytes(s.n, s.k) + 2.0 * static_cast<double>(s.n * s.k);
    std::printf("%5d x %-5d dequantised in %.2f us: %.3f TB/s read and written\n",
                static_cast<int>(s.n), static_cast<int>(s.k), us, bytes / us / 1e6);
  }

  Options options_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  Pool pool_{size_t{1} << 30, Fill::kBits}, scales_{size_t{128} << 20, Fill::kScaleHalf};
  Pool x_{size_t{64} * 28672 * 2, Fill::kNormalHalf}, y_{size_t{64} * 28672 * 2, Fill::kBits};
  Pool target_{size_t{512} << 20, Fill::kBits};
  std::map<int64_t, double> logs_;  // by tokens
};

int bench_main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--all") {
      options.all = true;
    } else if (option == "--bf16") {
      options.type = FloatType::kBf16;
    } else if (option == "--m" && !value.empty()) {
      options.tokens.clear();
      std::istringstream in(argv[++i]);
      for (std::string part; std::getline(in, part, ',');) {
        options.tokens.push_back(std::stoll(part));
      }
    } else if (option == "--shape" && value.find('x') != std::string::npos) {
      ++i;
      options.shapes = {
          {"", std::stoll(value), std::stoll(value.substr(value.find('x') + 1)), false}};
    } else {
      std::fprintf(stderr, "cannot make sense of %s %s; see the head of the source\n",
                   option.c_str(), value.c_str());
      return 2;
    }
  }
  Bench(options).run();
  return 0;
}

}  // namespace

}  // namespace flexq_kernels::bench

int main(int argc, char** argv) {
  alarm(300);  // a kernel that hangs must not hold the GPU
  try {
    return flexq_kernels::bench::bench_main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
