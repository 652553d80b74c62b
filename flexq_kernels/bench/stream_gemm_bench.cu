// flexq_stream_gemm_bench: the stream family on the linears of LLaMA, LLaMA-2 and OPT models.
//
//   flexq_stream_gemm_bench [--quick] [--m 1,8] [--shape NxK] [--config TEXT]
//
//   --quick   the default config of each problem only
//   --m       numbers of tokens (1,4,8,16,24,32)          --shape    one shape instead of all
//   --config  that config instead of the candidates ("kernel=direct tiles=1 stages=2 split=1")
//
// A measurement is the replay of a CUDA graph: a kernel writes x, then 40 or more GEMMs (1 ms
// or more), whose weights rotate over more than 400 MB, so that the L2 cache is cold for them; x is
// warm. Time is that of the replay divided by the GEMMs: median, p10 and p90 of 21. "full" is the
// same without programmatic launches. Before it is timed, every config is compared with a plain
// product on rows of the whole height. Codes, scales and activations are random. The floor is the
// weight's bytes (codes and scales, once) at 3.05 TB/s, the target max(1.05 floor, floor + 1.3 us);
// % is of a stream of 16-byte loads measured at the start. After "full" a line has the time of
// every config, the fastest first: kernel, tiles, stages, split.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "flexq_kernels/bench/stream_gemm_data.cuh"
#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/stream_gemm.h"

namespace flexq_kernels::gpu {

namespace {

constexpr int kReplays = 21, kWarmUps = 3;
constexpr double kFloorTbps = 3.05;
constexpr double kColdBytes = 400e6;
constexpr double kGraphUs = 1000;

struct Shape {
  int64_t n, k;
};
constexpr Shape kShapes[] = {{12288, 4096}, {4096, 4096}, {11008, 4096}, {4096, 11008},
                             {19968, 6656}, {6656, 6656}, {17920, 6656}, {6656, 17920},
                             {15360, 5120}, {5120, 5120}, {13824, 5120}, {5120, 13824},
                             {24576, 8192}, {8192, 8192}, {28672, 8192}, {8192, 28672},
                             {21504, 7168}, {7168, 7168}, {28672, 7168}, {7168, 28672}};

// ---- times ----

struct Times {
  double median = 0, p10 = 0, p90 = 0;
};

Times times_of(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us[us.size() / 10], us[us.size() * 9 / 10]};
}

template <typename T>
T* device_array(size_t count) {
  void* p = nullptr;
  check_cuda(cudaMalloc(&p, count * sizeof(T)), "memory of the benchmark");
  return static_cast<T*>(p);
}

struct Result {
  StreamConfig config;
  Times times;
};

class Bench {
 public:
  bool quick = false;
  std::vector<int64_t> tokens = {1, 4, 8, 16, 24, 32};
  std::vector<Shape> shapes{std::begin(kShapes), std::end(kShapes)};
  std::vector<StreamConfig> only;

  void run();

 private:
  void allocate();
  void measure_stream();
  void run_shape(const Shape& shape);
  void run_problem(const GemmProblem& problem);
  void print(const GemmProblem& problem, const std::vector<Result>& results, const Result& usual);
  bool takes(const GemmProblem& problem, const StreamConfig& config);
  bool right(const GemmProblem& problem, const StreamConfig& config);
  Times measure(const GemmProblem& problem, const StreamConfig& config, bool programmatic);
  void put_gemm(const GemmProblem& problem, const StreamConfig& config, const Output& y, int i,
                bool programmatic);
  void put_x(const GemmProblem& problem);
  void summarize() const;
  int buffers(const GemmProblem& problem) const;
  Times replay(const std::function<void()>& work, int count);

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  size_t pool_bytes_ = 0, scale_count_ = size_t{48} << 20;
  uint8_t* pool_ = nullptr;
  uint16_t* scales_ = nullptr;
  int8_t* x_codes_ = nullptr;
  float* x_scales_ = nullptr;
  float* y_ = nullptr;
  Reference* reference_ = nullptr;
  unsigned* wrong_ = nullptr;
  double stream_tbps_ = 0;
  std::map<int64_t, std::vector<double>> ratios_, floors_, seconds_;  // by tokens
  // Of every config, by tokens: time by target, and how often it was the best.
  std::map<std::pair<int64_t, std::string>, std::pair<std::vector<double>, int>> configs_;
};

double weight_bytes(const GemmProblem& p) {
  return static_cast<double>(p.n) * static_cast<double>(p.k) * 6.125 / 8;
}
double floor_us(const GemmProblem& p) { return weight_bytes(p) / kFloorTbps / 1e6; }
double geomean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += std::log(v);
  return std::exp(sum / static_cast<double>(values.size()));
}
std::string text_of(const StreamConfig& config) {
  std::ostringstream text;
  text << config;
  return text.str();
}
double target_us(const GemmProblem& p) { return std::max(1.05 * floor_us(p), floor_us(p) + 1.3); }

void Bench::allocate() {
  check_cuda(cudaStreamCreate(&stream_), "stream");
  check_cuda(cudaEventCreate(&begin_), "event");
  check_cuda(cudaEventCreate(&end_), "event");
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "free memory");
  pool_bytes_ = std::min(size_t{4} << 30, free / 2) / 4096 * 4096;
  pool_ = device_array<uint8_t>(pool_bytes_);
  scales_ = device_array<uint16_t>(scale_count_);
  x_codes_ = device_array<int8_t>(size_t{kMaxTokens} * 32768);
  x_scales_ = device_array<float>(size_t{kMaxTokens} * 256);
  y_ = device_array<float>(size_t{kMaxTokens} * 65536);
  reference_ = device_array<Reference>(size_t{kCheckedRows} * kMaxTokens);
  wrong_ = device_array<unsigned>(1);
  fill_bits<<<2048, 256, 0, stream_>>>(reinterpret_cast<uint4*>(pool_), pool_bytes_ / 16);
  fill_scales<<<1024, 256, 0, stream_>>>(reinterpret_cast<__half*>(scales_), scale_count_);
  check_cuda(cudaStreamSynchronize(stream_), "random data");
}

// The graph of what `work` puts on the stream, replayed; us of one of `count`.
Times Bench::replay(const std::function<void()>& work, int count) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
  work();
  check_cuda(cudaStreamEndCapture(stream_, &graph), "end of a capture");
  check_cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
  std::vector<double> us;
  for (int i = -kWarmUps; i < kReplays; ++i) {
    check_cuda(cudaEventRecord(begin_, stream_), "event");
    check_cuda(cudaGraphLaunch(exec, stream_), "launch of a graph");
    check_cuda(cudaEventRecord(end_, stream_), "event");
    check_cuda(cudaEventSynchronize(end_), "replay of a graph");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin_, end_), "time");
    if (i >= 0) us.push_back(static_cast<double>(ms) * 1e3 / count);
  }
  check_cuda(cudaGraphExecDestroy(exec), "graph");
  check_cuda(cudaGraphDestroy(graph), "graph");
  return times_of(us);
}

void Bench::measure_stream() {
  const unsigned blocks = static_cast<unsigned>(current_device().multiprocessors) * 2;
  const Times t = replay(
      [&] {
        read_stream<<<blocks, 512, 0, stream_>>>(reinterpret_cast<const uint4*>(pool_),
                                                 pool_bytes_ / 16, reinterpret_cast<uint4*>(y_));
      },
      1);
  stream_tbps_ = static_cast<double>(pool_bytes_) / t.median / 1e6;
  std::printf("read stream of %.1f GB: %.3f TB/s (p10 %.3f, p90 %.3f)\n",
              static_cast<double>(pool_bytes_) / 1e9, stream_tbps_,
              static_cast<double>(pool_bytes_) / t.p90 / 1e6,
              static_cast<double>(pool_bytes_) / t.p10 / 1e6);
}

int Bench::buffers(const GemmProblem& p) const {
  const auto bytes = static_cast<double>(packed_bytes(p.n, p.k));
  const int wanted = static_cast<int>(std::ceil(kColdBytes / bytes)) + 1;
  return std::min(wanted, static_cast<int>(static_cast<double>(pool_bytes_) / bytes));
}

void Bench::put_x(const GemmProblem& p) {
  launch_kernel(write_x, dim3(64), dim3(256), 0, {stream_, false}, x_codes_, x_scales_,
                static_cast<int>(p.m), static_cast<int>(group_count(p.k)),
                static_cast<int>(scale_stride_of(p.m)));
}

void Bench::put_gemm(const GemmProblem& p, const StreamConfig& config, const Output& y, int i,
                     bool programmatic) {
  const auto which = static_cast<size_t>(i % buffers(p));
  const auto scale_count = static_cast<size_t>(row_tiles(p.n) * group_count(p.k) * kTileRows);
  const Weight w{pool_ + which * static_cast<size_t>(packed_bytes(p.n, p.k)),
                 scales_ + which % (scale_count_ / scale_count) * scale_count};
  stream_gemm(y, {x_codes_, x_scales_, scale_stride_of(p.m), CodeOrder::kFragment}, w, p, config,
              {stream_, programmatic});
}

// False, with the reason, for one of --config that is not for so many tokens.
bool Bench::takes(const GemmProblem& p, const StreamConfig& config) {
  Output y;
  y.values = y_;
  try {
    put_gemm(p, config, y, 0, false);
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
    return false;
  }
  return true;
}

bool Bench::right(const GemmProblem& p, const StreamConfig& config) {
  const size_t bytes = static_cast<size_t>(p.m * p.n) * sizeof(float);
  check_cuda(cudaMemsetAsync(y_, 0xff, bytes, stream_), "poison");
  check_cuda(cudaMemsetAsync(wrong_, 0xff, sizeof(unsigned), stream_), "poison");
  put_x(p);
  Output y;
  y.values = y_;
  put_gemm(p, config, y, 0, true);
  compare<<<kCheckedRows, static_cast<unsigned>(p.m), 0, stream_>>>(wrong_, y_, reference_, p.n);
  unsigned wrong = 0;
  check_cuda(cudaMemcpyAsync(&wrong, wrong_, sizeof(wrong), cudaMemcpyDeviceToHost, stream_),
             "copy");
  check_cuda(cudaStreamSynchronize(stream_), "comparison");
  if (wrong == ~0u) return true;
  Reference want;
  float got = 0;
  const int64_t token = wrong % kMaxTokens;
  const int64_t row = checked_row(static_cast<int>(wrong / kMaxTokens), p.n);
  check_cuda(cudaMemcpy(&want, reference_ + wrong, sizeof(want), cudaMemcpyDeviceToHost), "copy");
  check_cuda(cudaMemcpy(&got, y_ + token * p.n + row, sizeof(got), cudaMemcpyDeviceToHost), "copy");
  std::ostringstream text;
  text << p << " " << config;
  std::printf("WRONG %s: token %d row %d is %.9g, not %.9g +- %.3g\n", text.str().c_str(),
              static_cast<int>(token), static_cast<int>(row), static_cast<double>(got), want.value,
              want.limit);
  return false;
}

Times Bench::measure(const GemmProblem& p, const StreamConfig& config, bool programmatic) {
  const int rotation = buffers(p);
  const int least = std::max(40, static_cast<int>(kGraphUs / floor_us(p)));
  const int launches = (least + rotation - 1) / rotation * rotation;
  Output y;
  y.values = y_;
  y.type = FloatType::kFp16;
  return replay(
      [&] {
        put_x(p);
        for (int i = 0; i < launches; ++i) put_gemm(p, config, y, i, programmatic);
      },
      launches);
}

void Bench::run_problem(const GemmProblem& p) {
  std::vector<StreamConfig> configs = only.empty() ? stream_configs(p, current_device()) : only;
  if (quick) configs.resize(1);
  std::vector<Result> results;
  for (const StreamConfig& config : configs) {
    if (!takes(p, config) || !right(p, config)) continue;
    results.push_back({config, measure(p, config, true)});
    const Times& times = results.back().times;
    configs_[{p.m, text_of(config)}].first.push_back(times.median / target_us(p));
  }
  if (results.empty()) return;
  const Result usual = results[0];
  std::sort(results.begin(), results.end(),
            [](const Result& a, const Result& b) { return a.times.median < b.times.median; });
  ++configs_[{p.m, text_of(results[0].config)}].second;
  print(p, results, usual);
  const double us = results[0].times.median;
  ratios_[p.m].push_back(us / target_us(p));
  floors_[p.m].push_back(us / floor_us(p));
  seconds_[p.m].push_back(us);
}

// results: the fastest first.
void Bench::print(const GemmProblem& p, const std::vector<Result>& results, const Result& usual) {
  const double us = results[0].times.median, tbps = weight_bytes(p) / us / 1e6;
  std::printf(
      "%5d x %-5d m=%-2d %7.2f us (%.2f-%.2f) %5.1f%% target x %.3f floor x %.3f default %+.1f%% "
      "full %.2f",
      static_cast<int>(p.n), static_cast<int>(p.k), static_cast<int>(p.m), us, results[0].times.p10,
      results[0].times.p90, 100 * tbps / stream_tbps_, us / target_us(p), us / floor_us(p),
      100 * (usual.times.median / us - 1), measure(p, results[0].config, false).median);
  for (const Result& result : results) {
    const StreamConfig& c = result.config;
    const char* kernel = c.kernel == StreamKernel::kDirect  ? "direct"
                         : c.kernel == StreamKernel::kAsync ? "async"
                                                            : "wide";
    std::printf(" | %.2f %s %d %d %d", result.times.median, kernel, c.tiles, c.stages, c.split);
  }
  std::printf("\n");
  std::fflush(stdout);
}

void Bench::run_shape(const Shape& shape) {
  const int groups = static_cast<int>(group_count(shape.k));
  plain_product<<<kCheckedRows, kMaxTokens, 0, stream_>>>(
      reference_, pool_, reinterpret_cast<const __half*>(scales_), shape.n, groups);
  check_cuda(cudaGetLastError(), "plain product");
  for (const int64_t m : tokens) run_problem({m, shape.n, shape.k, 8});
}

void Bench::summarize() const {
  for (const auto& [which, result] : configs_) {
    std::printf("m=%-2d %-40s of target: geometric mean %.3f, worst %.3f, the best of %d shapes\n",
                static_cast<int>(which.first), which.second.c_str(), geomean(result.first),
                *std::max_element(result.first.begin(), result.first.end()), result.second);
  }
  for (const auto& [m, ratios] : ratios_) {
    std::printf("m=%-2d  of target: geometric mean %.3f, worst %.3f   of floor: %.3f, worst %.3f",
                static_cast<int>(m), geomean(ratios),
                *std::max_element(ratios.begin(), ratios.end()), geomean(floors_.at(m)),
                *std::max_element(floors_.at(m).begin(), floors_.at(m).end()));
    const auto eight = seconds_.find(8);
    if (eight != seconds_.end() && eight->second.size() == ratios.size()) {
      std::vector<double> over;
      for (size_t i = 0; i < ratios.size(); ++i) {
        over.push_back(seconds_.at(m)[i] / eight->second[i]);
      }
      std::printf("   of m=8: %.3f, worst %.3f", geomean(over),
                  *std::max_element(over.begin(), over.end()));
    }
    std::printf("\n");
  }
}

void Bench::run() {
  allocate();
  measure_stream();
  for (const Shape& shape : shapes) run_shape(shape);
  summarize();
}

int bench_main(int argc, char** argv) {
  Bench bench;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--quick") {
      bench.quick = true;
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (option == "--m") {
      bench.tokens.clear();
      std::istringstream in(value);
      for (std::string part; std::getline(in, part, ',');) bench.tokens.push_back(std::stoll(part));
    } else if (option == "--shape" && value.find('x') != std::string::npos) {
      bench.shapes = {{std::stoll(value), std::stoll(value.substr(value.find('x') + 1))}};
    } else if (option == "--config" && parse_stream_config(value)) {
      bench.only = {*parse_stream_config(value)};
    } else {
      std::fprintf(stderr, "cannot make sense of %s %s; see the head of stream_gemm_bench.cu\n",
                   option.c_str(), value.c_str());
      return 2;
    }
  }
  bench.run();
  return 0;
}

}  // namespace

}  // namespace flexq_kernels::gpu

int main(int argc, char** argv) {
  alarm(300);  // a kernel that hangs must not hold the GPU
  try {
    return flexq_kernels::gpu::bench_main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
