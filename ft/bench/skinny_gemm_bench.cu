// flexq_ft_skinny_bench: the skinny product on the linears of LLaMA-7B and 13B, as in a decode
// step.
//
//   flexq_ft_skinny_bench [--all] [--types fp16,bf16,w8a16,w8a16-bf16,w8a8] [--m 1,8] [--shapes N]
//   [--ahead N]
//
// Weights are random and rotate over more than 400 MB, so that L2 is cold for them; x is warm, as
// it is in a step, where the kernel in front has just written it. A measurement is the replay of a
// graph of 20 or more programmatic launches, divided by their number: median, p10 and p90 of 31.
// Every config is compared with a plain product on the GPU before it is timed. TB/s counts the
// bytes of the weight once; % is of a read stream measured at the start.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/launch.cuh"
#include "ft/kernels/skinny_gemm.h"

namespace flexq_ft {

namespace {

constexpr size_t kPoolBytes = size_t{704} << 20;
constexpr double kColdBytes = 400e6;
constexpr int kReplays = 31;

struct Kind {
  const char* name;
  Scheme scheme;
  DataType x, w;
};

const Kind kKinds[] = {{"fp16", Scheme::kFloat, DataType::kFp16, DataType::kFp16},
                       {"bf16", Scheme::kFloat, DataType::kBf16, DataType::kBf16},
                       {"w8a16", Scheme::kW8A16, DataType::kFp16, DataType::kInt8},
                       {"w8a16-bf16", Scheme::kW8A16, DataType::kBf16, DataType::kInt8},
                       {"w8a8", Scheme::kW8A8, DataType::kInt8, DataType::kInt8}};

const int64_t kShapes[][2] = {{12288, 4096}, {4096, 4096},  {22016, 4096},
                              {4096, 11008}, {32000, 4096}, {15360, 5120},
                              {5120, 5120},  {27648, 5120}, {5120, 13824}};

// ---- data ----

__device__ uint32_t hash(uint64_t i) {
  uint32_t h = static_cast<uint32_t>(i) * 0x9e3779b9u + static_cast<uint32_t>(i >> 32) + 1;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// Uniform: integers of -127 to 127, floats of -1 to 1.
template <typename T>
__global__ void fill(T* out, size_t count, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t h = hash(i + seed);
    if constexpr (sizeof(T) == 1) {
      out[i] = static_cast<T>(static_cast<int>(h % 255u) - 127);
    } else {
      out[i] = static_cast<T>(static_cast<float>(h) * 0x1p-31f - 1.0f);
    }
  }
}

void fill_random(void* out, DataType type, size_t bytes, uint64_t seed, cudaStream_t stream) {
  if (type == DataType::kInt8) {
    fill<<<1024, 256, 0, stream>>>(static_cast<int8_t*>(out), bytes, seed);
  } else if (type == DataType::kFp16) {
    fill<<<1024, 256, 0, stream>>>(static_cast<__half*>(out), bytes / 2, seed);
  } else {
    fill<<<1024, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(out), bytes / 2, seed);
  }
  FLEXQ_FT_CUDA(cudaGetLastError());
}

// ---- what it is compared with ----

// One thread a value; sums in double, which is exact for integers.
template <typename X, typename W>
__global__ void plain_product(double* y, const X* x, const W* w, int64_t m, int64_t n, int64_t k) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= m * n) return;
  const X* row = x + i % m * k;  // neighbours share the row of w
  const W* column = w + i / m * k;
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) {
    sum += static_cast<double>(static_cast<float>(row[j])) *
           static_cast<double>(static_cast<float>(column[j]));
  }
  y[i % m * n + i / m] = sum;
}

template <typename X, typename W>
void plain(double* y, const void* x, const void* w, int64_t m, int64_t n, int64_t k,
           cudaStream_t stream) {
  plain_product<<<static_cast<unsigned>((m * n + 255) / 256), 256, 0, stream>>>(
      y, static_cast<const X*>(x), static_cast<const W*>(w), m, n, k);
  FLEXQ_FT_CUDA(cudaGetLastError());
}

void reference(const Kind& kind, double* y, const void* x, const void* w, int64_t m, int64_t n,
               int64_t k, cudaStream_t stream) {
  const bool half = kind.x == DataType::kFp16;
  if (kind.scheme == Scheme::kW8A8) return plain<int8_t, int8_t>(y, x, w, m, n, k, stream);
  if (kind.scheme == Scheme::kW8A16) {
    return half ? plain<__half, int8_t>(y, x, w, m, n, k, stream)
                : plain<__nv_bfloat16, int8_t>(y, x, w, m, n, k, stream);
  }
  return half ? plain<__half, __half>(y, x, w, m, n, k, stream)
              : plain<__nv_bfloat16, __nv_bfloat16>(y, x, w, m, n, k, stream);
}

// ---- times ----

struct Times {
  double median = 0, p10 = 0, p90 = 0;  // us of one launch
};

// body(i) puts the i-th launch on the queue's stream.
template <typename Body>
Times measure(cuda::Queue& queue, int launches, Body&& body) {
  const Stream stream = queue.stream();
  auto* handle = static_cast<cudaStream_t>(stream.handle);
  body(0);  // loads the kernel, which a capture may not do
  cuda::synchronize(stream);
  stream.tail->our_kernel = false;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  FLEXQ_FT_CUDA(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) body(i);
  FLEXQ_FT_CUDA(cudaStreamEndCapture(handle, &graph));
  FLEXQ_FT_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cuda::Event begin(true), end(true);
  std::vector<double> us;
  for (int replay = -3; replay < kReplays; ++replay) {
    begin.record(stream);
    FLEXQ_FT_CUDA(cudaGraphLaunch(exec, handle));
    end.record(stream);
    end.wait();
    if (replay >= 0) us.push_back(end.since_ms(begin) * 1e3 / launches);
  }
  FLEXQ_FT_CUDA(cudaGraphExecDestroy(exec));
  FLEXQ_FT_CUDA(cudaGraphDestroy(graph));
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us[us.size() / 10], us[us.size() * 9 / 10]};
}

__global__ void __launch_bounds__(512) read_stream(const uint4* from, size_t count, uint4* out) {
  gpu::pdl_launch_dependents();
  gpu::pdl_wait();
  uint4 seen = {};
  const size_t step = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      seen.x ^= v[j].x, seen.y ^= v[j].y, seen.z ^= v[j].z, seen.w ^= v[j].w;
    }
  }
  if ((seen.x & seen.y & seen.z & seen.w) == 0xdeadbeefu) *out = seen;  // keeps the loads
}

struct Bench {
  bool all = false;
  std::vector<std::string> types = {"fp16", "w8a16", "w8a8"};
  std::vector<int64_t> tokens = {1, 2, 4, 8, 16, 32, 64};
  size_t shapes = std::size(kShapes);
  int ahead = 0;

  cuda::Queue queue;
  int multiprocessors = cuda::device_info(cuda::current_device()).multiprocessors;
  Buffer pool{kPoolBytes, MemoryKind::kWorkspace, Device::kCuda};
  Buffer x{size_t{4} << 20, MemoryKind::kWorkspace, Device::kCuda};
  Buffer y{size_t{16} << 20, MemoryKind::kWorkspace, Device::kCuda};
  Buffer want{size_t{32} << 20, MemoryKind::kWorkspace, Device::kCuda};
  double stream_tbps = 0;

  cudaStream_t handle() { return static_cast<cudaStream_t>(queue.stream().handle); }

  void measure_stream() {
    const size_t count = kPoolBytes / 16 / 4;
    const Times times = measure(queue, 20, [&](int i) {
      gpu::launch(read_stream, dim3(static_cast<unsigned>(multiprocessors) * 4), dim3(512), 0,
                  queue.stream(), static_cast<const uint4*>(pool.data()) + i % 4 * count, count,
                  static_cast<uint4*>(y.data()));
    });
    stream_tbps = static_cast<double>(kPoolBytes) / 4 / times.median / 1e6;
    std::printf("read stream: %.2f TB/s\n", stream_tbps);
  }

  // Largest |got - want| over the largest |want|; NaN and untouched values count as infinite.
  double error(const GemmProblem& p, bool integer) {
    const auto count = static_cast<size_t>(p.m * p.n);
    std::vector<unsigned char> got(count * 4);
    std::vector<double> expected(count);
    cuda::copy(got.data(), y.data(), got.size(), queue.stream());
    cuda::copy(expected.data(), want.data(), count * 8, queue.stream());
    cuda::synchronize(queue.stream());
    double worst = 0, largest = 1e-30;
    for (size_t i = 0; i < count; ++i) {
      int32_t whole;
      float real;
      std::memcpy(&whole, &got[4 * i], 4);
      std::memcpy(&real, &got[4 * i], 4);
      const double difference = std::fabs((integer ? whole : real) - expected[i]);
      worst = difference >= 0 ? std::max(worst, difference) : INFINITY;
      largest = std::max(largest, std::fabs(expected[i]));
    }
    return worst / largest;
  }

  // Times one config; 0 if its result is wrong.
  double run(const Kind& kind, const GemmProblem& p, const gpu::SkinnyConfig& config,
             const char* note) {
    const size_t bytes = static_cast<size_t>(p.n * p.k) * size_of(kind.w);
    const int weights = static_cast<int>(
        std::min<double>(std::floor(static_cast<double>(kPoolBytes) / static_cast<double>(bytes)),
                         std::ceil(kColdBytes / static_cast<double>(bytes)) + 1));
    const bool integer = kind.scheme == Scheme::kW8A8;
    const Tensor out(y.data(), integer ? DataType::kInt32 : DataType::kFp32, Shape{p.m, p.n},
                     Device::kCuda);
    const ConstTensor in(x.data(), kind.x, Shape{p.m, p.k}, Device::kCuda);
    const auto launch_one = [&](int i) {
      const ConstTensor w(
          static_cast<const char*>(pool.data()) + static_cast<size_t>(i % weights) * bytes, kind.w,
          Shape{p.n, p.k}, Device::kCuda);
      gpu::invokeSkinnyGemm(out, in, w, kind.scheme, config, queue.stream());
    };
    cuda::fill(y.data(), 0xff, out.bytes(), queue.stream());
    launch_one(0);
    const double wrong = error(p, integer);
    std::ostringstream printed;
    printed << config;
    if (!(wrong <= (integer ? 0 : 3e-5))) {
      std::printf("%-10s %5d x %-5d m=%-2d %-26s WRONG: error %g\n", kind.name,
                  static_cast<int>(p.n), static_cast<int>(p.k), static_cast<int>(p.m),
                  printed.str().c_str(), wrong);
      return 0;
    }
    const int launches = weights * ((19 + weights) / weights);
    const Times times = measure(queue, launches, launch_one);
    const double tbps = static_cast<double>(bytes) / times.median / 1e6;
    std::printf("%-10s %5d x %-5d m=%-2d %-26s %7.2f us (%.2f-%.2f) %5.2f TB/s %5.1f%%  %s\n",
                kind.name, static_cast<int>(p.n), static_cast<int>(p.k), static_cast<int>(p.m),
                printed.str().c_str(), times.median, times.p10, times.p90, tbps,
                100 * tbps / stream_tbps, note);
    std::fflush(stdout);
    return times.median;
  }

  void run_problem(const Kind& kind, const GemmProblem& p) {
    gpu::SkinnyConfig usual = gpu::skinny_default(p, multiprocessors);
    usual.ahead = ahead;
    const double usual_us = run(kind, p, usual, "default");
    if (!all) return;
    double best_us = usual_us;
    gpu::SkinnyConfig best = usual;
    for (gpu::SkinnyConfig config : gpu::skinny_configs(p)) {
      config.ahead = ahead;
      if (config == usual) continue;
      const double us = run(kind, p, config, "");
      if (us == 0 || us >= best_us) continue;
      best_us = us;
      best = config;
    }
    std::ostringstream printed;
    printed << best;
    std::printf("%-10s %5d x %-5d m=%-2d %-26s %7.2f us best, default %+.1f%%\n", kind.name,
                static_cast<int>(p.n), static_cast<int>(p.k), static_cast<int>(p.m),
                printed.str().c_str(), best_us, 100 * (usual_us / best_us - 1));
  }

  void run_all() {
    fill_random(pool.data(), DataType::kFp16, kPoolBytes, 1, handle());
    measure_stream();
    for (const Kind& kind : kKinds) {
      if (std::find(types.begin(), types.end(), kind.name) == types.end()) continue;
      fill_random(pool.data(), kind.w, kPoolBytes, 1, handle());
      fill_random(x.data(), kind.x, x.bytes(), 1u << 30, handle());
      for (size_t s = 0; s < std::min(shapes, std::size(kShapes)); ++s) {
        for (const int64_t m : tokens) {
          const GemmProblem p{kind.scheme, kind.x, m, kShapes[s][0], kShapes[s][1]};
          reference(kind, static_cast<double*>(want.data()), x.data(), pool.data(), m, p.n, p.k,
                    handle());
          run_problem(kind, p);
        }
      }
    }
  }
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

int bench_main(int argc, char** argv) {
  Bench bench;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--all") {
      bench.all = true;
      continue;
    }
    if (option == "--types") {
      bench.types = split(value);
    } else if (option == "--m") {
      bench.tokens.clear();
      for (const std::string& m : split(value)) bench.tokens.push_back(std::stoll(m));
    } else if (option == "--shapes") {
      bench.shapes = std::stoull(value);
    } else if (option == "--ahead") {
      bench.ahead = std::stoi(value);
    } else {
      std::fprintf(stderr, "unknown option %s; see the head of skinny_gemm_bench.cu\n", argv[i]);
      return 2;
    }
    ++i;
  }
  bench.run_all();
  return 0;
}

}  // namespace

}  // namespace flexq_ft

int main(int argc, char** argv) {
  try {
    return flexq_ft::bench_main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
