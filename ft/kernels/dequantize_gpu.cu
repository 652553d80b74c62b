#include "ft/kernels/dequantize_gpu.h"
#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/launch.cuh"

namespace flexq_ft::gpu {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ uint32_t pair_bits(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ uint32_t pair_bits(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float code(uint32_t word, int i) {
  return __int2float_rn(static_cast<int8_t>(word >> (8 * i)));
}

// 16 codes a thread: one load of 16 bytes, two stores.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_codes(uint4* __restrict__ out, const uint4* __restrict__ w, int64_t count) {
  pdl_launch_dependents();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  uint4 codes{};
  // Weights never change, so they may be read before the kernel in front has ended; its reader of
  // `out` may still run.
  if (i < count) codes = __ldcs(w + i);
  pdl_wait();
  if (i >= count) return;
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t pairs[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t word = words[2 * half + p / 2];
      const int first = p % 2 * 2;
      pairs[p] = pair_bits(code(word, first), code(word, first + 1), T{});
    }
    out[2 * i + half] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

}  // namespace

void invokeDequantizeCodes(Tensor out, ConstTensor w, Stream stream) {
  FLEXQ_FT_CHECK_EQ(w.dtype(), DataType::kInt8, "weight");
  FLEXQ_FT_CHECK_EQ(out.shape(), w.shape(), "dequantised weight");
  FLEXQ_FT_CHECK_EQ(w.count() % 16, 0, "codes of a weight ", w.shape());
  if (w.empty()) return;
  const int64_t count = w.count() / 16;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  auto* to = static_cast<uint4*>(out.raw());
  const auto* from = static_cast<const uint4*>(w.raw());
  if (out.dtype() == DataType::kFp16) {
    launch(dequantize_codes<__half>, blocks, kThreads, 0, stream, to, from, count);
  } else {
    FLEXQ_FT_CHECK_EQ(out.dtype(), DataType::kBf16, "dequantised weight");
    launch(dequantize_codes<__nv_bfloat16>, blocks, kThreads, 0, stream, to, from, count);
  }
}

}  // namespace flexq_ft::gpu
