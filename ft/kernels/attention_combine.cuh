// Combines what the parts of decode attention gave, each weighted by its maximum and sum, and makes
// the codes where they are asked for.
#pragma once

#include <algorithm>

#include "ft/kernels/attention_decode.cuh"

namespace flexq_ft::gpu {

constexpr int kCombineParts = 8;      // whose values a thread asks for at once
constexpr int kCombineColumns = 256;  // of a block that makes no codes
constexpr int kCombineThreads = 1024;

// Four columns of a token: its parts' values from `from` on.
__device__ __forceinline__ void load_parts(float4 (&x)[kCombineParts], const float* values,
                                           int head_dim, int from, int count) {
#pragma unroll
  for (int i = 0; i < kCombineParts; ++i) {
    const float* at = values + static_cast<int64_t>(from + i) * head_dim;
    if (from + i < count) x[i] = *reinterpret_cast<const float4*>(at);
  }
}

__device__ __forceinline__ void add_parts(float (&sum)[4], const float4 (&x)[kCombineParts],
                                          const float* weights, int from, int count) {
#pragma unroll
  for (int i = 0; i < kCombineParts; ++i) {
    if (from + i >= count) continue;
    const float weight = weights[from + i];
    sum[0] += weight * x[i].x;
    sum[1] += weight * x[i].y;
    sum[2] += weight * x[i].z;
    sum[3] += weight * x[i].w;
  }
}

// weights [heads][most + 1] of the heads from `head` on: what each part counts, and behind them the
// inverse of the sum.
template <int kMostParts>
__device__ __forceinline__ void combine_weights(float* weights, const float2* sums, int heads,
                                                int count, int most) {
  constexpr int kRounds = kMostParts / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int h = static_cast<int>(threadIdx.x) / 32; h < heads;
       h += static_cast<int>(blockDim.x) / 32) {
    float2 part[kRounds];
    float best = kMinusInfinity;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int i = r * 32 + lane;
      part[r] = i < count ? sums[h * most + i] : make_float2(kMinusInfinity, 0.0f);
      best = fmaxf(best, part[r].x);
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, i));
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r * 32 >= count) break;
      const float weight = exp2_fast(part[r].x - exponent_base(best));
      sum += weight * part[r].y;
      const int i = r * 32 + lane;
      if (i < count) weights[h * (most + 1) + i] = weight;
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (lane == 0) weights[h * (most + 1) + most] = __fdiv_rn(1.0f, sum);
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

// How a block combines: `width` columns of a token, a group where there are codes, by `slices`
// times `threads` threads, each of which adds up kCombineParts parts. Where a group is more than
// kCombineColumns, as a whole row is, there is one slice, of all parts one after the other.
struct CombineShape {
  int width, slices, threads;

  // most: parts of a sequence.
  CombineShape(int width, int most)
      : width(width),
        slices(width > kCombineColumns ? 1 : (most + kCombineParts - 1) / kCombineParts),
        threads(std::clamp((width / 4 + 31) / 32 * 32, 32, kCombineThreads)) {}

  // Most parts that the block's group may have: what one slice can do.
  static constexpr int part_limit(int width) {
    return width > kCombineColumns ? 32 : kMaxDecodeParts;
  }

  // fp32 [slices - 1][threads][4], weights, and the rounded values.
  __host__ __device__ int others_bytes() const { return (slices - 1) * threads * 16; }
  size_t shared_bytes(int most, int head_dim) const {
    return static_cast<size_t>(others_bytes() + combine_heads(width, head_dim) * (most + 1) * 4 +
                               width * 2);
  }
};

// Blocks: (columns [width x, width (x + 1)) of the token, token). kSliced: shape.slices may be more
// than 1; else there are 32 parts at most.
template <typename T, bool kSliced>
__global__ void __launch_bounds__(kCombineThreads)
    attention_combine_kernel(AttentionView<T> view, DecodeParts parts, AttentionOut<T> out,
                             CombineShape shape) {
  extern __shared__ float4 combine_shared[];
  __shared__ int magnitudes[32];
  pdl_launch_dependents();
  const int width = shape.width, most = parts.most;
  const int64_t token = blockIdx.y;
  const int first = static_cast<int>(blockIdx.x) * width;
  const int columns = min(width, out.quantizer.columns - first);
  const int head = first / view.head_dim;
  const int heads = (first + columns - 1) / view.head_dim - head + 1;
  const int count = decode_parts(view.context[token] + 1, parts.limit);
  pdl_wait();
  const int64_t row = (token * view.heads + head) * most;
  float4* const others = combine_shared;
  float* weights = reinterpret_cast<float*>(combine_shared + shape.others_bytes() / 16);
  T* rounded = reinterpret_cast<T*>(weights + combine_heads(width, view.head_dim) * (most + 1));

  const int slices = kSliced ? shape.slices : 1;
  const int slice = kSliced ? static_cast<int>(threadIdx.x) / shape.threads : 0;
  const int thread = static_cast<int>(threadIdx.x) - slice * shape.threads;
  const auto values_of = [&](int column, int& h) {  // of the columns' first part
    h = (first + column) / view.head_dim - head;
    const int64_t part = row + static_cast<int64_t>(h) * most;
    return parts.values + part * view.head_dim + (first + column) % view.head_dim;
  };
  int h = 0;
  float4 x[kCombineParts] = {};
  if (thread * 4 < columns)
    load_parts(x, values_of(thread * 4, h), view.head_dim, slice * kCombineParts, count);
  combine_weights<kSliced ? kMaxDecodeParts : 32>(weights, parts.sums + row, heads, count, most);
  __syncthreads();
  int magnitude = 0;
  bool loaded = true;
  for (int from = 0; from < columns; from += shape.threads * 4, loaded = false) {
    const int i = from + thread * 4;
    float sum[4] = {};
    float inverse = 0.0f;
    if (i < columns) {
      const float* values = values_of(i, h);
      const float* w = weights + h * (most + 1);
      inverse = w[most];
      for (int part = slice * kCombineParts; part < count;
           part += slices * kCombineParts, loaded = false) {
        if (!loaded) load_parts(x, values, view.head_dim, part, count);
        float these[4] = {};
        add_parts(these, x, w, part, count);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[e] += these[e];
      }
    }
    if (kSliced && count > kCombineParts) {
      if (from > 0) __syncthreads();
      if (slice > 0) {
        others[(slice - 1) * shape.threads + thread] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      }
      __syncthreads();
      for (int s = 1; slice == 0 && s * kCombineParts < count; ++s) {
        const float4 other = others[(s - 1) * shape.threads + thread];
        sum[0] += other.x;
        sum[1] += other.y;
        sum[2] += other.z;
        sum[3] += other.w;
      }
    }
    if (slice > 0 || i >= columns) continue;
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

}  // namespace flexq_ft::gpu
