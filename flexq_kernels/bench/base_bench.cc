// How long the quantiser and the binary product take: the median over replays of a graph of
// dependent launches, random data. The quantiser's input is warm in L2, as behind its producer; the
// product's weights come from memory (more of them than L2 holds, in turn). Results are checked by
// test_gpu_w6ax_packing and test_gpu_w6ax_base.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "flexq_kernels/gpu/btc_gemm.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/quantize.h"
#include "flexq_kernels/pack.h"

using namespace flexq_kernels;
using gpu::check_cuda;

namespace {

constexpr int kReplays = 30;
constexpr size_t kColdBytes = size_t{400} << 20;

// Device memory with random bytes; or with one 32-bit word all over.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_((bytes + 255) / 256 * 256) {
    check_cuda(cudaMalloc(&data_, bytes_), "memory");
    std::vector<uint32_t> words(std::min<size_t>(bytes_ / 4, 1 << 20));
    std::mt19937 random(static_cast<unsigned>(bytes_));
    for (uint32_t& word : words) word = random();
    copy(words);
  }
  Memory(size_t bytes, uint32_t word) : bytes_((bytes + 255) / 256 * 256) {
    check_cuda(cudaMalloc(&data_, bytes_), "memory");
    copy(std::vector<uint32_t>(std::min<size_t>(bytes_ / 4, 1 << 20), word));
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  template <typename T>
  T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(data_ + offset_bytes);
  }

 private:
  void copy(const std::vector<uint32_t>& words) {
    for (size_t at = 0; at < bytes_; at += words.size() * 4) {
      check_cuda(cudaMemcpy(data_ + at, words.data(), std::min(words.size() * 4, bytes_ - at),
                            cudaMemcpyHostToDevice),
                 "memory");
    }
  }
  size_t bytes_;
  char* data_ = nullptr;
};

// us per launch: launch(i, how) for i < count in one graph.
double median_us(int count, const std::function<void(int, const gpu::Launch&)>& launch) {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  check_cuda(cudaEventCreate(&begin), "event");
  check_cuda(cudaEventCreate(&end), "event");
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < count; ++i) launch(i, {stream, true});
  check_cuda(cudaStreamEndCapture(stream, &graph), "capture");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  std::vector<float> times;
  for (int i = 0; i < kReplays + 3; ++i) {
    check_cuda(cudaEventRecord(begin, stream), "event");
    check_cuda(cudaGraphLaunch(executable, stream), "graph");
    check_cuda(cudaEventRecord(end, stream), "event");
    check_cuda(cudaEventSynchronize(end), "graph");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 3) times.push_back(ms * 1e3f / static_cast<float>(count));
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time_quantizer(FloatType type, const char* name, int64_t m, int64_t k) {
  const int64_t groups = group_count(k), stride = gpu::scale_stride_of(m);
  const Memory x(static_cast<size_t>(m * k * 4), 0x3f8e3fa1u);  // about 1 in each type
  const Memory codes(static_cast<size_t>(m * groups * kGroupSize));
  const Memory scales(static_cast<size_t>(groups * stride * 4));
  const gpu::ActivationBuffers out{codes.as<int8_t>(), scales.as<float>(), stride,
                                   gpu::CodeOrder::kFragment};
  const double us = median_us(200, [&](int, const gpu::Launch& launch) {
    gpu::quantize_activations(out, x.as<void>(), type, m, k, 8, launch);
  });
  std::printf("quantize %s  m %3d  k %5d  %6.2f us\n", name, static_cast<int>(m),
              static_cast<int>(k), us);
}

void time_btc(int64_t m, int64_t n, int64_t k, int act_bits) {
  const size_t codes = static_cast<size_t>(packed_bytes(n, k));
  const size_t scale_bytes = static_cast<size_t>(tiled_scale_count(n, k)) * 2;
  const int copies = static_cast<int>(kColdBytes / codes) + 2;
  const Memory planes(codes * static_cast<size_t>(copies));
  const Memory w_scales(scale_bytes * static_cast<size_t>(copies), 0x20002100u);
  const Memory x(static_cast<size_t>(gpu::btc_activation_bytes(m, k, act_bits)));
  const Memory x_scales(static_cast<size_t>(group_count(k) * gpu::scale_stride_of(m) * 4),
                        0x3c000000u);
  const Memory y(static_cast<size_t>(m * n * 2));
  const GemmProblem problem{m, n, k, act_bits};
  const double us = median_us(copies * 2, [&](int i, const gpu::Launch& launch) {
    const size_t copy = static_cast<size_t>(i % copies);
    gpu::btc_gemm({y.as<void>(), FloatType::kFp16, nullptr, nullptr},
                  {x.as<uint32_t>(), x_scales.as<float>(), gpu::scale_stride_of(m)},
                  {planes.as<uint32_t>(copy * codes), w_scales.as<uint16_t>(copy * scale_bytes)},
                  problem, launch);
  });
  const double bytes = static_cast<double>(codes + scale_bytes);
  std::printf("btc a%d  m %3d  n %5d  k %5d  %7.2f us  %5.2f TB/s  floor %6.2f us at 3.05 TB/s\n",
              act_bits, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), us,
              bytes / us * 1e-6, bytes / 3.05e6);
}

}  // namespace

int main() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("no GPU here\n");
    return 0;
  }
  for (const int64_t m : {1, 4, 16}) {
    for (const int64_t k : {4096, 11008, 28672}) {
      time_quantizer(FloatType::kFp16, "fp16", m, k);
      time_quantizer(FloatType::kFp32, "fp32", m, k);
    }
  }
  const int64_t shapes[][2] = {
      {4096, 4096}, {12288, 4096}, {4096, 11008}, {28672, 8192}, {8192, 28672}};
  for (const auto& [n, k] : shapes) {
    for (const int64_t m : {1, 8, 16, 32, 64}) {
      time_btc(m, n, k, 6);
      time_btc(m, n, k, 8);
    }
  }
  return 0;
}
