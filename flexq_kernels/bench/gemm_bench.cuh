// What GEMM benches work on: the shapes of the linear layers of LLaMA, LLaMA-2 and OPT, random
// operands in device memory, a naive kernel that samples a result, and launches timed back to back.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/pack.h"

namespace flexq_kernels::bench {

using flexq_kernels::gpu::check_cuda;

struct Shape {
  const char* model;
  int64_t n, k;
  bool wide;  // 8-bit activations
};

inline constexpr Shape kShapes[] = {
    {"LLaMA-7B", 12288, 4096, false},    {"LLaMA-7B", 4096, 4096, false},
    {"LLaMA-7B", 11008, 4096, false},    {"LLaMA-7B", 4096, 11008, true},
    {"LLaMA-30B", 19968, 6656, false},   {"LLaMA-30B", 6656, 6656, false},
    {"LLaMA-30B", 17920, 6656, false},   {"LLaMA-30B", 6656, 17920, true},
    {"LLaMA-2-13B", 15360, 5120, false}, {"LLaMA-2-13B", 5120, 5120, false},
    {"LLaMA-2-13B", 13824, 5120, false}, {"LLaMA-2-13B", 5120, 13824, true},
    {"LLaMA-2-70B", 24576, 8192, false}, {"LLaMA-2-70B", 8192, 8192, false},
    {"LLaMA-2-70B", 28672, 8192, false}, {"LLaMA-2-70B", 8192, 28672, true},
    {"OPT-30B", 21504, 7168, false},     {"OPT-30B", 7168, 7168, false},
    {"OPT-30B", 28672, 7168, false},     {"OPT-30B", 7168, 28672, true}};

// ---- Random operands ----

__device__ inline uint32_t scrambled(uint64_t i) {
  uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>(x >> 32);
}

enum class Fill { kBits, kInt6, kInt8, kScaleHalf, kScaleFloat, kNormalHalf };

static __global__ void fill(void* to, size_t words, Fill kind) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < words;
       i += step) {
    const uint32_t bits = scrambled(i);
    uint32_t word = bits;
    if (kind == Fill::kInt6) {  // bytes -32 … 31
      word = (bits & 0x1f1f1f1fu) | ((bits & 0x20202020u) >> 5) * 0xe0u;
    } else if (kind == Fill::kScaleHalf || kind == Fill::kNormalHalf) {
      const float u = static_cast<float>(bits & 0xffff) / 65536, v = (bits >> 16) / 65536.0f;
      const __half2 pair = kind == Fill::kScaleHalf
                               ? __floats2half2_rn(1e-3f + 3e-3f * u, 1e-3f + 3e-3f * v)
                               : __floats2half2_rn(4 * u - 2, 4 * v - 2);
      memcpy(&word, &pair, 4);
    } else if (kind == Fill::kScaleFloat) {
      word = __float_as_uint(1e-2f + 1e-2f * (static_cast<float>(bits >> 8) / 16777216));
    }
    static_cast<uint32_t*>(to)[i] = word;
  }
}

class Pool {
 public:
  Pool(size_t bytes, Fill kind) : bytes_(bytes) {
    check_cuda(cudaMalloc(&data_, bytes), "memory");
    refill(kind);
  }
  ~Pool() { cudaFree(data_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void refill(Fill kind) {
    fill<<<1024, 256>>>(data_, bytes_ / 4, kind);
    check_cuda(cudaGetLastError(), "filling");
  }
  template <typename T>
  T* at(size_t bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + bytes);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// ---- The naive kernel ----

// One thread per sampled output, from the definition of the layout (pack.h) and of the sum, whose
// groups are added up in so many slices.
static __global__ void sample(int* wrong, const __half* y, const int8_t* a,
                              const float* token_scales, int64_t stride, const uint8_t* w,
                              const __half* row_scales, int64_t m, int64_t n, int64_t groups,
                              int slices, int samples) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= samples) return;
  const int64_t token = scrambled(2 * i) % m, row = scrambled(2 * i + 1) % n;
  float sum = 0, slice = 0;
  int in_slice = 0;
  for (int64_t g = 0; g < groups; ++g) {
    if (g == groups * (in_slice + 1) / slices) {
      sum += slice;
      slice = 0;
      ++in_slice;
    }
    const int64_t tile = row / 16 * groups + g;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(w + tile * kTileBytes);
    int32_t exact = 0;
    for (int k = 0; k < kGroupSize; ++k) {
      const int r16 = static_cast<int>(row % 16), kk = k % 32, s = k / 32;
      const int r = (r16 >> 3) + 2 * (kk >> 4), b = kk & 3;
      const int lane = 4 * (r16 & 7) + ((kk & 15) >> 2);
      int code = 0;
      for (int bit = 0; bit < 6; ++bit) {
        const int word = r < 3 ? 3 * s + r : 3 * s + 2 - bit / 2;
        const int at = r < 3 ? 8 * b + 2 + bit : 8 * b + (bit & 1);
        code |= (words[word / 4 * 128 + 4 * lane + word % 4] >> at & 1) << bit;
      }
      exact +=
          (code ^ 32) - 32 == 0 ? 0 : ((code ^ 32) - 32) * a[(token * groups + g) * kGroupSize + k];
    }
    const float t = static_cast<float>(exact) * __half2float(row_scales[tile * 16 + row % 16]);
    slice = __fmaf_rn(t, token_scales[g * stride + token], slice);
  }
  sum += slice;
  const __half want = __float2half_rn(sum), got = y[token * n + row];
  if (__half_as_ushort(want) == __half_as_ushort(got)) return;
  if (atomicAdd(wrong, 1) < 4) {
    printf("  WRONG token %lld row %lld: %g, should be %g\n", static_cast<long long>(token),
           static_cast<long long>(row), __half2float(got), __half2float(want));
  }
}

static __global__ void clock_rate(uint64_t* out) {  // clocks and nanoseconds of 0.2 ms
  uint64_t begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  const long long clocks = clock64();
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < 200000);
  out[0] = static_cast<uint64_t>(clock64() - clocks);
  out[1] = now - begin;
}

// ---- Timing ----

using Run = std::function<void(int turn)>;  // one launch; turn chooses the weights

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    cudaEventCreate(&begin_);
    cudaEventCreate(&end_);
    cudaMalloc(&clocks_, 16);
  }

  // Microseconds of a launch, of at least `seconds` of them back to back.
  double time(const Run& run, double seconds) {
    for (int i = 0; i < 2; ++i) run(i);
    const double once = std::max(1e-6, batch(run, 3));
    double total = 0;
    int launches = 0;
    while (total < seconds) {
      const int count = std::max(3, static_cast<int>(std::min(0.1, seconds) / once));
      total += batch(run, count) * count;
      launches += count;
    }
    return total / launches * 1e6;
  }

  double megahertz() {
    clock_rate<<<1, 1, 0, stream_>>>(clocks_);
    uint64_t host[2];
    check_cuda(cudaMemcpyAsync(host, clocks_, 16, cudaMemcpyDeviceToHost, stream_), "clocks");
    check_cuda(cudaStreamSynchronize(stream_), "clocks");
    return static_cast<double>(host[0]) / static_cast<double>(host[1]) * 1e3;
  }

 private:
  double batch(const Run& run, int count) {  // seconds of a launch
    cudaEventRecord(begin_, stream_);
    for (int i = 0; i < count; ++i) run(turn_++);
    cudaEventRecord(end_, stream_);
    check_cuda(cudaEventSynchronize(end_), "a kernel");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin_, end_);
    return ms * 1e-3 / count;
  }

  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
  uint64_t* clocks_ = nullptr;
  int turn_ = 0;
};

}  // namespace flexq_kernels::bench
