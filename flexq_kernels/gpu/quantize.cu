// The activation quantiser: half a warp per group of 128, eight values per lane, no shared memory.
//
//   lane i of the half warp:  k = 8i … 8i + 7    one or two 16-byte loads
//                             words 2i, 2i + 1   of codes: neighbours in natural order,
//                                                32 bytes apart in fragment order
//
// A row is spread over many blocks (sixteen groups each), because at a few tokens the kernel is all
// latency: one round trip to L2, four shuffles, a division, a store.
#include "flexq_kernels/gpu/quantize.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/quantize.cuh"
#include "flexq_kernels/pack.h"

namespace flexq_kernels::gpu {

namespace {

constexpr int kLaneValues = 8;
constexpr int kGroupLanes = kGroupSize / kLaneValues;
constexpr int kBlockThreads = 256;
constexpr int kBlockGroups = kBlockThreads / kGroupLanes;

struct QuantizeArgs {
  ActivationBuffers out;
  const void* x;
  int m;
  int k;
  int limit;  // 31 or 127
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Values k … k + 7 of a row, zeros past its end. Where k divides by eight, rows begin on 16-byte
// boundaries and a lane's values are all inside or all outside.
template <typename T>
__device__ __forceinline__ void load_values(float (&values)[kLaneValues], const T* row, int k,
                                            int end) {
  constexpr int kPieces = kLaneValues * sizeof(T) / sizeof(uint4);
  if (end % kLaneValues == 0) {
    uint4 pieces[kPieces] = {};
    if (k < end) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) pieces[p] = reinterpret_cast<const uint4*>(row + k)[p];
    }
    T typed[kLaneValues];
    memcpy(typed, pieces, sizeof(typed));
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) values[i] = widen(typed[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) values[i] = k + i < end ? widen(row[k + i]) : 0.0f;
}

// The largest of the half warp, in each of its lanes.
__device__ __forceinline__ int group_max(int bits) {
#pragma unroll
  for (int distance = kGroupLanes / 2; distance > 0; distance /= 2) {
    bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, distance));
  }
  return bits;
}

__device__ __forceinline__ uint32_t pack_codes(const float* values, float inverse, int limit) {
  uint32_t word = 0;
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    word |= (static_cast<uint32_t>(quantized(values[b], inverse, limit)) & 0xffu) << (8 * b);
  }
  return word;
}

// blockIdx.x: the token; blockIdx.y: which sixteen of its groups.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_activations_kernel(const QuantizeArgs args) {
  pdl_launch_dependents();
  const int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kGroupLanes;
  const int group = static_cast<int>(blockIdx.y * kBlockGroups + threadIdx.x / kGroupLanes);
  const int groups = static_cast<int>(group_count(args.k));
  pdl_wait();
  float values[kLaneValues];
  load_values(values, static_cast<const T*>(args.x) + token * args.k,
              group * kGroupSize + lane * kLaneValues, args.k);
  int bits = 0;
#pragma unroll
  for (float value : values) bits = max(bits, magnitude_bits(value));
  bits = group_max(bits);
  if (group >= groups) return;  // the last block of a token
  const float inverse = group_inverse(bits, args.limit);
  const float scale = group_scale(bits, args.limit);
  const uint32_t low = pack_codes(values, inverse, args.limit);
  const uint32_t high = pack_codes(values + 4, inverse, args.limit);
  uint32_t* codes =
      reinterpret_cast<uint32_t*>(args.out.codes + (token * groups + group) * kGroupSize);
  if (args.out.order == CodeOrder::kNatural) {
    reinterpret_cast<uint2*>(codes)[lane] = make_uint2(low, high);
  } else {
    codes[fragment_word(2 * lane)] = low;
    codes[fragment_word(2 * lane + 1)] = high;
  }
  if (lane != 0) return;
  float* scales = args.out.scales + group * args.out.scale_stride;
  scales[token] = scale;
  if (token == args.m - 1) {
    for (int64_t i = token + 1; i % 4 != 0; ++i) scales[i] = 0.0f;
  }
}

void check(const ActivationBuffers& out, const void* x, int64_t m, int64_t k, int act_bits) {
  constexpr int64_t kMostK = int64_t{65535} * kBlockGroups * kGroupSize;
  check_problem({m, 1, k, act_bits});
  FLEXQ_CHECK(k <= kMostK, "activations [", m, ", ", k, "]: k must be at most ", kMostK);
  if (m == 0) return;
  check_pointer(x, "activations");
  check_activations(out.view(), {m, 1, k, act_bits});
}

}  // namespace

void quantize_activations(const ActivationBuffers& out, const void* x, FloatType type, int64_t m,
                          int64_t k, int act_bits, const Launch& launch) {
  check(out, x, m, k, act_bits);
  if (m == 0) return;
  const QuantizeArgs args{out, x, static_cast<int>(m), static_cast<int>(k),
                          act_bits == 6 ? 31 : 127};
  const dim3 grid(static_cast<unsigned>(m),
                  static_cast<unsigned>((group_count(k) + kBlockGroups - 1) / kBlockGroups));
  const auto kernel = type == FloatType::kFp32   ? quantize_activations_kernel<float>
                      : type == FloatType::kFp16 ? quantize_activations_kernel<__half>
                                                 : quantize_activations_kernel<__nv_bfloat16>;
  launch_kernel(kernel, grid, kBlockThreads, 0, launch, args);
}

}  // namespace flexq_kernels::gpu
