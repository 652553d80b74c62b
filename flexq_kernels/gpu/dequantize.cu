// Dequantising on a GPU. A warp owns a tile of 16 rows x 128 k. Of a step and a row lane t has four
// values at k = 4t and four at 16 + 4t; it swaps four with its neighbour, and each stores eight:
//
//   k            0   4   8  12  16  20  24  28
//   lane has    t0  t1  t2  t3  t0  t1  t2  t3
//   and stores  t0  t0  t2  t2  t1  t1  t3  t3
#include "flexq_kernels/gpu/dequantize.h"

#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/weight_only_gemm_values.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kBlockThreads = 256;

struct Matrix {
  uint16_t* values;
  int64_t n, k;
};

// Eight neighbours in k; as many of them as are inside. Where k is a multiple of eight, all or none
// are, on a 16-byte boundary.
__device__ __forceinline__ void store_eight(const Matrix& to, int64_t row, int64_t k, uint4 v) {
  if (row >= to.n || k >= to.k) return;
  uint16_t* at = to.values + row * to.k + k;
  if (to.k % 8 == 0) {
    *reinterpret_cast<uint4*>(at) = v;
    return;
  }
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (k + i < to.k) at[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
  }
}

// Four codes of a register, scaled and rounded.
template <typename T>
__device__ __forceinline__ uint2 scaled(uint32_t codes, float scale) {
  uint32_t pair[2];
  CodeValues<T>::widen(pair[0], pair[1], codes);
#pragma unroll
  for (uint32_t& p : pair) {
    const float2 v = CodeValues<T>::as_floats(p);
    p = CodeValues<T>::rounded(__fmul_rn(v.x, scale), __fmul_rn(v.y, scale));
  }
  return {pair[0], pair[1]};
}

// Of lanes 2i and 2i + 1 the first gets both `low`, the other both `high`.
__device__ __forceinline__ uint4 swap_with_neighbour(uint2 low, uint2 high, bool odd) {
  const uint2 give = odd ? low : high, keep = odd ? high : low;
  const uint2 got = {__shfl_xor_sync(0xffffffffu, give.x, 1),
                     __shfl_xor_sync(0xffffffffu, give.y, 1)};
  return odd ? make_uint4(got.x, got.y, keep.x, keep.y) : make_uint4(keep.x, keep.y, got.x, got.y);
}

template <typename T>
__device__ __forceinline__ void dequantize_tile(const Matrix& to, const Weight& w, int64_t tile,
                                                int64_t row, int64_t k, int lane) {
  const int g = lane / 4, t = lane % 4;
  const uint4* codes = reinterpret_cast<const uint4*>(w.codes + tile * kTileBytes) + lane;
  const uint4 chunks[3] = {codes[0], codes[32], codes[64]};
  const uint32_t words[12] = {chunks[0].x, chunks[0].y, chunks[0].z, chunks[0].w,
                              chunks[1].x, chunks[1].y, chunks[1].z, chunks[1].w,
                              chunks[2].x, chunks[2].y, chunks[2].z, chunks[2].w};
  float scale[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    scale[i] = __half2float(__ushort_as_half(w.scales[tile * kTileRows + g + 8 * i]));
  }
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    uint32_t r[4];
    unpack_int6(r, words[3 * s], words[3 * s + 1], words[3 * s + 2]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 eight =
          swap_with_neighbour(scaled<T>(r[i], scale[i]), scaled<T>(r[2 + i], scale[i]), t % 2 == 1);
      store_eight(to, row + g + 8 * i, k + 32 * s + t % 2 * 16 + t / 2 * 8, eight);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) dequantize_int6_kernel(Matrix to, Weight w) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t groups = group_count(to.k), tiles = row_tiles(to.n) * groups;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kBlockThreads / 32);
  int64_t tile = static_cast<int64_t>(blockIdx.x) * (kBlockThreads / 32) + threadIdx.x / 32;
  for (; tile < tiles; tile += warps) {
    dequantize_tile<T>(to, w, tile, tile / groups * kTileRows, tile % groups * kGroupSize,
                       static_cast<int>(threadIdx.x % 32));
  }
}

}  // namespace

void dequantize_int6(void* values, FloatType type, const Weight& w, int64_t n, int64_t k,
                     const Launch& launch) {
  FLEXQ_CHECK(n >= 0 && k >= 1 && n <= kMaxExtent && k <= kMaxExtent, "cannot dequantize [", n,
              ", ", k, "]: n must be 0 … ", kMaxExtent, ", k 1 … ", kMaxExtent);
  FLEXQ_CHECK(type != FloatType::kFp32, "cannot dequantize [", n, ", ", k,
              "] to fp32: the type must be fp16 or bf16");
  if (n == 0) return;
  check_pointer(values, "target of a dequantized weight");
  check_weight(w);
  const Matrix to{static_cast<uint16_t*>(values), n, k};
  constexpr int kWarps = kBlockThreads / 32;
  const int64_t blocks = (row_tiles(n) * group_count(k) + kWarps - 1) / kWarps;
  // Past a few per multiprocessor they loop.
  const int64_t most = int64_t{16} * current_device().multiprocessors;
  const dim3 grid(static_cast<unsigned>(blocks < most ? blocks : most));
  auto* kernel = type == FloatType::kFp16 ? dequantize_int6_kernel<__half>
                                          : dequantize_int6_kernel<__nv_bfloat16>;
  launch_kernel(kernel, grid, kBlockThreads, 0, launch, to, w);
}

}  // namespace flexq_kernels::gpu
