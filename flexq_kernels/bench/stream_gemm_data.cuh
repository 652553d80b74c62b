// What the benchmark of the stream family multiplies, the plain product that it is compared with,
// and the kernel that measures the read stream. All values are functions of their place.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/pack.h"

namespace flexq_kernels::gpu {

constexpr int kMaxTokens = 32;
constexpr int kCheckedRows = 96;

// ---- data ----

__host__ __device__ inline uint32_t hash(uint64_t i) {
  uint32_t h =
      static_cast<uint32_t>(i) * 0x9e3779b9u + static_cast<uint32_t>(i >> 32) * 0x7feb352du + 1;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

__device__ inline int8_t x_code(int64_t token, int64_t k) {
  return static_cast<int8_t>(hash((static_cast<uint64_t>(token) << 32) + static_cast<uint64_t>(k)));
}
__device__ inline float x_scale(int64_t token, int64_t group) {
  return 1e-4f * static_cast<float>(1 + hash((uint64_t{77} << 40) +
                                             static_cast<uint64_t>(group * kMaxTokens + token)) %
                                            300);
}

static __global__ void fill_bits(uint4* out, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    out[i] = make_uint4(hash(4 * i), hash(4 * i + 1), hash(4 * i + 2), hash(4 * i + 3));
  }
}

static __global__ void fill_scales(__half* out, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    out[i] = __float2half(1e-3f * static_cast<float>(1 + hash(i + (uint64_t{5} << 40)) % 20));
  }
}

// The kernel in front of the GEMMs.
static __global__ void write_x(int8_t* codes, float* scales, int m, int groups, int stride) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t bytes = int64_t{m} * groups * kGroupSize;
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = thread; i < bytes; i += threads) {
    const int64_t token = i / (int64_t{groups} * kGroupSize),
                  k = i % (int64_t{groups} * kGroupSize);
    const auto w = static_cast<int>(k % kGroupSize / 4);
    const int place = w % 4 * 8 + w / 8 * 2 + w / 4 % 2;  // CodeOrder::kFragment
    codes[i - k % kGroupSize + 4 * place + k % 4] = x_code(token, k);
  }
  for (int64_t i = thread; i < int64_t{groups} * stride; i += threads) {
    scales[i] = x_scale(i % stride, i / stride);
  }
}

// ---- the plain product ----

struct Reference {
  double value, limit;
};

// The rows that are compared: some at both ends, the rest spread out.
__host__ __device__ inline int64_t checked_row(int i, int64_t n) {
  return i < 24 ? i : i < 48 ? n - 48 + i : (hash(static_cast<uint64_t>(i)) % n);
}

// Bit by bit, as kernels that know nothing of tensor cores would read the layout (pack.h).
__device__ inline int weight_code(const uint8_t* packed, int64_t row, int64_t k, int groups) {
  const auto kk = static_cast<int>(k % 32), s = static_cast<int>(k % kGroupSize / 32);
  const auto in_tile = static_cast<int>(row % kTileRows);
  const int r = in_tile / 8 + 2 * (kk / 16), lane = 4 * (in_tile % 8) + kk % 16 / 4, byte = kk % 4;
  const uint8_t* tile = packed + (row / kTileRows * groups + k / kGroupSize) * kTileBytes;
  const auto at = [&](int word) {
    return int{tile[word / 4 * 512 + lane * 16 + word % 4 * 4 + byte]};
  };
  int bits = 0;
  if (r < 3) {
    bits = at(3 * s + r) >> 2;
  } else {
    bits = (at(3 * s) & 3) << 4 | (at(3 * s + 1) & 3) << 2 | (at(3 * s + 2) & 3);
  }
  return bits >= 32 ? bits - 64 : bits;
}

// A block for a checked row, a thread per token.
static __global__ void plain_product(Reference* out, const uint8_t* packed, const __half* scales,
                                     int64_t n, int groups) {
  const int token = static_cast<int>(threadIdx.x);
  const int64_t row = checked_row(static_cast<int>(blockIdx.x), n);
  double value = 0, magnitude = 0;
  for (int g = 0; g < groups; ++g) {
    int sum = 0;
    for (int k = g * kGroupSize; k < (g + 1) * kGroupSize; ++k) {
      sum += weight_code(packed, row, k, groups) * x_code(token, k);
    }
    const double scale = static_cast<double>(
        __half2float(scales[(row / kTileRows * groups + g) * kTileRows + row % kTileRows]));
    const double term = sum * scale * static_cast<double>(x_scale(token, g));
    value += term;
    magnitude += fabs(term);
  }
  out[blockIdx.x * kMaxTokens + token] = {value, (groups + 8) * 0x1p-23 * magnitude};
}

// wrong: index (row of the checked * kMaxTokens + token) of the least wrong element, or -1.
static __global__ void compare(unsigned* wrong, const float* y, const Reference* want, int64_t n) {
  const int token = static_cast<int>(threadIdx.x);
  const int64_t row = checked_row(static_cast<int>(blockIdx.x), n);
  const Reference& r = want[blockIdx.x * kMaxTokens + token];
  const double got = static_cast<double>(y[token * n + row]);
  if (!(fabs(got - r.value) <= r.limit)) atomicMin(wrong, blockIdx.x * kMaxTokens + token);
}

// ---- the read stream ----

static __global__ void __launch_bounds__(512, 2)
    read_stream(const uint4* from, size_t count, uint4* out) {
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

}  // namespace flexq_kernels::gpu
