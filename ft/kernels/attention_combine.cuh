// Combines what the parts of decode attention gave, each weighted by its maximum and sum, and makes
// the codes where they are asked for.
#pragma once

#include "ft/kernels/attention_decode.cuh"

namespace flexq_ft::gpu {

constexpr int kCombineLoads = 8;      // parts whose values a thread asks for at once
constexpr int kCombineColumns = 512;  // of a block that makes no codes
constexpr int kCombineThreads = 1024;

// Four columns of a token: its parts' values from `from` on.
__device__ __forceinline__ void load_parts(float4 (&x)[kCombineLoads], const float* values,
                                           int head_dim, int from, int count) {
#pragma unroll
  for (int i = 0; i < kCombineLoads; ++i) {
    const float* at = values + static_cast<int64_t>(from + i) * head_dim;
    if (from + i < count) x[i] = *reinterpret_cast<const float4*>(at);
  }
}

__device__ __forceinline__ void add_parts(float (&sum)[4], const float4 (&x)[kCombineLoads],
                                          const float* weights, int from, int count) {
#pragma unroll
  for (int i = 0; i < kCombineLoads; ++i) {
    if (from + i >= count) continue;
    const float weight = weights[from + i];
    sum[0] += weight * x[i].x;
    sum[1] += weight * x[i].y;
    sum[2] += weight * x[i].z;
    sum[3] += weight * x[i].w;
  }
}

// weights [heads][kMaxDecodeParts + 1] of the heads from `head` on: what each part counts, and
// behind them the inverse of the sum.
__device__ __forceinline__ void combine_weights(float* weights, const float2* sums, int heads,
                                                int count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int h = static_cast<int>(threadIdx.x) / 32; h < heads;
       h += static_cast<int>(blockDim.x) / 32) {
    float2 part = make_float2(kMinusInfinity, 0.0f);
    if (lane < count) part = sums[h * kMaxDecodeParts + lane];
    float best = part.x;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, i));
    const float weight = exp2_fast(part.x - exponent_base(best));
    float sum = weight * part.y;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    weights[h * (kMaxDecodeParts + 1) + lane] = weight;
    if (lane == 0) weights[h * (kMaxDecodeParts + 1) + kMaxDecodeParts] = __fdiv_rn(1.0f, sum);
  }
}

// Heads that `width` columns of a block can touch.
__host__ __device__ __forceinline__ int combine_heads(int width, int head_dim) {
  return (width + head_dim - 2) / head_dim + 1;
}

// Bits of the largest magnitude of the block, in every thread.
__device__ __forceinline__ int block_magnitude(int bits, int* shared) {
  bits = __reduce_max_sync(0xffffffffu, bits);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = bits;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return __reduce_max_sync(0xffffffffu,
                           lane < static_cast<int>(blockDim.x) / 32 ? shared[lane] : 0);
}

// Codes of the block's `width` columns, one group, whose rounded values are in shared memory, four
// of a thread's own at a time.
template <typename T>
__device__ __forceinline__ void combine_quantize(const AttentionOut<T>& out, int64_t token,
                                                 const T* rounded, int width, int columns,
                                                 int magnitude, int* shared) {
  const Quantizer& q = out.quantizer;
  const int bits = block_magnitude(magnitude, shared);
  const float inverse = group_inverse(bits, q.limit);
  const int group = static_cast<int>(blockIdx.x);
  int8_t* const codes = q.row(token);
  for (int i = static_cast<int>(threadIdx.x); i * 4 < width; i += static_cast<int>(blockDim.x)) {
    float x[4] = {};  // the rest of the last group is zeros
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i * 4 < columns) x[e] = to_float(rounded[i * 4 + e]);
    }
    *reinterpret_cast<uint32_t*>(codes + q.at(group * q.group + i * 4)) =
        pack_codes(x, inverse, q.limit);
  }
  if (threadIdx.x == 0) q.store_scale(token, group, group_scale(bits, q.limit));
}

// Blocks: (columns [width x, width (x + 1)) of the token, token). A width is a group where there
// are codes.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    attention_combine_kernel(AttentionView<T> view, DecodeParts parts, AttentionOut<T> out,
                             int width) {
  extern __shared__ float4 combine_shared[];
  __shared__ int magnitudes[32];
  pdl_launch_dependents();
  const int64_t token = blockIdx.y;
  const int first = static_cast<int>(blockIdx.x) * width;
  const int columns = min(width, out.quantizer.columns - first);
  const int head = first / view.head_dim;
  const int heads = (first + columns - 1) / view.head_dim - head + 1;
  const int count = decode_parts(view.context[token] + 1);
  pdl_wait();
  const int64_t row = (token * view.heads + head) * kMaxDecodeParts;
  float* weights = reinterpret_cast<float*>(combine_shared);
  T* rounded =
      reinterpret_cast<T*>(weights + combine_heads(width, view.head_dim) * (kMaxDecodeParts + 1));

  int i = static_cast<int>(threadIdx.x) * 4;
  const auto values_of = [&](int column, int& h) {  // of the columns' first part
    h = (first + column) / view.head_dim - head;
    const int64_t part = row + static_cast<int64_t>(h) * kMaxDecodeParts;
    return parts.values + part * view.head_dim + (first + column) % view.head_dim;
  };
  int h = 0;
  float4 x[kCombineLoads] = {};
  if (i < columns) load_parts(x, values_of(i, h), view.head_dim, 0, count);
  combine_weights(weights, parts.sums + row, heads, count);
  __syncthreads();
  int magnitude = 0;
  for (bool loaded = true; i < columns; i += static_cast<int>(blockDim.x) * 4, loaded = false) {
    const float* values = values_of(i, h);
    const float* w = weights + h * (kMaxDecodeParts + 1);
    float sum[4] = {};
    for (int from = 0; from < count; from += kCombineLoads) {
      if (from > 0 || !loaded) load_parts(x, values, view.head_dim, from, count);
      add_parts(sum, x, w, from, count);
    }
    const float inverse = w[kMaxDecodeParts];
    uint2 words;
    words.x = pack2(sum[0] * inverse, sum[1] * inverse, T{});
    words.y = pack2(sum[2] * inverse, sum[3] * inverse, T{});
    if (out.values != nullptr) {
      *reinterpret_cast<uint2*>(out.values + token * out.quantizer.columns + first + i) = words;
    }
    if (out.quantizer.codes == nullptr) continue;
    T* mine = rounded + i;
    *reinterpret_cast<uint32_t*>(mine) = words.x;
    *reinterpret_cast<uint32_t*>(mine + 2) = words.y;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      magnitude = max(magnitude, magnitude_bits(to_float(mine[e])));
    }
  }
  if (out.quantizer.codes == nullptr) return;
  combine_quantize(out, token, rounded, width, columns, magnitude, magnitudes);
}

inline size_t combine_shared_bytes(int64_t width, int64_t head_dim) {
  const int heads = combine_heads(static_cast<int>(width), static_cast<int>(head_dim));
  return static_cast<size_t>(heads) * (kMaxDecodeParts + 1) * sizeof(float) +
         static_cast<size_t>(width) * 2;
}

}  // namespace flexq_ft::gpu
