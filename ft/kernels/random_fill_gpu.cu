#include <algorithm>

#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/launch.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

template <typename T>
__device__ __forceinline__ T random_value(const RandomFill& fill, uint32_t bits) {
  const float x = __fmul_rn(fill.spread, detail::random_unit(bits));
  return from_float<T>(__fadd_rn(fill.center, x));
}

template <>
__device__ __forceinline__ int8_t random_value<int8_t>(const RandomFill&, uint32_t bits) {
  return detail::random_code(bits);
}

template <>
__device__ __forceinline__ uint8_t random_value<uint8_t>(const RandomFill&, uint32_t bits) {
  return detail::random_byte(bits);
}

// One thread: the numbers of one word at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    random_kernel(T* out, RandomFill fill, int64_t first, int64_t count) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t last = first + count;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t word = first / 4 + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; word * 4 < last; word += step) {
    const uint64_t bits = detail::random_word(fill.key, static_cast<uint64_t>(word));
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int64_t i = word * 4 + part;
      if (i < first || i >= last) continue;
      out[i - first] = random_value<T>(fill, detail::random_bits(bits, part));
    }
  }
}

template <typename T>
void fill_with(Tensor out, const RandomFill& fill, int64_t first, Stream stream) {
  const int64_t blocks = std::min(out.count() / (4 * kThreads) + 2, kMaxBlocks);
  launch(random_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
         static_cast<T*>(out.raw()), fill, first, out.count());
}

}  // namespace

void random_fill(Tensor out, const RandomFill& fill, int64_t first, Stream stream) {
  if (out.dtype() == DataType::kInt8) return fill_with<int8_t>(out, fill, first, stream);
  if (out.dtype() == DataType::kUint8) return fill_with<uint8_t>(out, fill, first, stream);
  dispatch_compute_type(out.dtype(),
                        [&](auto tag) { fill_with<decltype(tag)>(out, fill, first, stream); });
}

}  // namespace flexq_ft::gpu
