#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/gemm_tuner_gpu.h"
#include "ft/kernels/launch.cuh"

#include "ft/core/cuda.h"

namespace flexq_ft::gpu {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 1024;

// A 32-bit mixer with good avalanche (the finaliser of MurmurHash3's family).
__device__ __forceinline__ uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  return x ^ (x >> 16);
}

template <typename T>
__device__ __forceinline__ T random_value(uint32_t bits) {
  return from_float<T>(static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-31f);
}
template <>
__device__ __forceinline__ int8_t random_value<int8_t>(uint32_t bits) {
  return static_cast<int8_t>(static_cast<int>(bits % 255u) - 127);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fill(T* out, int64_t count, uint32_t seed) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const auto low = static_cast<uint32_t>(i), high = static_cast<uint32_t>(i >> 32);
    out[i] = random_value<T>(mixed(low ^ mixed(high ^ seed)));
  }
}

// Four numbers of a block: <a, a>, <b, b>, <a, b>, elements of other bits.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    compare(double* partials, const T* a, const T* b, int64_t count) {
  __shared__ double shared[4][kThreads];
  pdl_launch_dependents();
  pdl_wait();
  double sums[4] = {0, 0, 0, 0};
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const double u = static_cast<double>(a[i]), v = static_cast<double>(b[i]);
    sums[0] += u * u;
    sums[1] += v * v;
    sums[2] += u * v;
    sums[3] += reinterpret_cast<const int32_t*>(a)[i] != reinterpret_cast<const int32_t*>(b)[i];
  }
  for (int s = 0; s < 4; ++s) shared[s][threadIdx.x] = sums[s];
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= width) continue;
    for (int s = 0; s < 4; ++s) shared[s][threadIdx.x] += shared[s][threadIdx.x + width];
  }
  if (threadIdx.x != 0) return;
  for (int s = 0; s < 4; ++s) partials[4 * blockIdx.x + s] = shared[s][0];
}

}  // namespace

void fill_random(Tensor out, uint32_t seed, Stream stream) {
  if (out.dtype() == DataType::kInt8) {
    launch(fill<int8_t>, kBlocks, kThreads, 0, stream, out.data<int8_t>(), out.count(), seed);
    return;
  }
  dispatch_compute_type(out.dtype(), [&](auto tag) {
    using T = decltype(tag);
    launch(fill<T>, kBlocks, kThreads, 0, stream, out.data<T>(), out.count(), seed);
  });
}

Comparer::Comparer()
    : partials_(kBlocks * 4 * sizeof(double), MemoryKind::kWorkspace, Device::kCuda) {}

Difference Comparer::operator()(ConstTensor a, ConstTensor b, Stream stream) {
  FLEXQ_FT_CHECK_EQ(a.shape(), b.shape(), "results to compare");
  FLEXQ_FT_CHECK_EQ(a.dtype(), b.dtype(), "results to compare");
  auto* partials = static_cast<double*>(partials_.data());
  if (a.dtype() == DataType::kInt32) {
    launch(compare<int32_t>, kBlocks, kThreads, 0, stream, partials, a.data<int32_t>(),
           b.data<int32_t>(), a.count());
  } else {
    launch(compare<float>, kBlocks, kThreads, 0, stream, partials, a.data<float>(), b.data<float>(),
           a.count());
  }
  double blocks[kBlocks][4];
  cuda::copy(blocks, partials, sizeof(blocks), stream);
  cuda::synchronize(stream);
  double sums[4] = {0, 0, 0, 0};
  for (const auto& block : blocks) {
    for (int s = 0; s < 4; ++s) sums[s] += block[s];
  }
  const double total = sums[0] + sums[1];
  return {total == 0 ? 0 : 1 - 2 * sums[2] / total, static_cast<int64_t>(sums[3])};
}

}  // namespace flexq_ft::gpu
