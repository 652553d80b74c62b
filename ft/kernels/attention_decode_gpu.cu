#include <algorithm>

#include "ft/kernels/attention_decode.cuh"

namespace flexq_ft::gpu {

namespace {

// Blocks: (KV head and eight of its query heads, sequence, parts z, z + gridDim.z, …). The grid
// does not depend on contexts: a captured step is replayed as they grow.
template <typename T, int kDim>
__global__ void __launch_bounds__(kDecodeThreads, kDim > 128  ? 1
                                                  : kDim > 64 ? 2
                                                              : 4)
    attention_decode_kernel(AttentionView<T> view, DecodeParts parts, int head_blocks) {
  __shared__ DecodeShared<kDim> shared;
  pdl_launch_dependents();
  pdl_wait();
  const int kv_head = static_cast<int>(blockIdx.x) / head_blocks;
  const int block = static_cast<int>(blockIdx.x) % head_blocks;
  const int token = static_cast<int>(blockIdx.y);  // its sequence's only one: also the sequence
  const int w = static_cast<int>(threadIdx.x) / 32;
  const int32_t* table = view.pages + static_cast<int64_t>(token) * view.max_pages;
  int part = static_cast<int>(blockIdx.z);
  // All that can be asked for before the length is known; the page is right for short sequences.
  const int guess = part * (kDecodeChunk / kPageTokens) + w;
  int page = table[min(guess, view.max_pages - 1)];
  const int length = view.context[token] + 1;
  const int head = kv_head * view.group() + block * kDecodeHeads;
  const int heads = min(kDecodeHeads, view.group() - block * kDecodeHeads);
  const int64_t row = static_cast<int64_t>(token) * view.heads + head;
  DecodeWarp<T, kDim> warp;
  warp.load_q(view.q + row * view.head_dim, heads, view.head_dim);

  const int chunk = decode_chunk(length) / kPageTokens;
  const int pages = (length + kPageTokens - 1) / kPageTokens;
  for (bool guessed = true; part * chunk < pages; part += static_cast<int>(gridDim.z)) {
    const int first = part * chunk;
    const int end = min(first + chunk, pages);
    if (first + w < end && !(guessed && first + w == guess)) page = table[first + w];
    if (!guessed) __syncthreads();  // `shared` was read
    guessed = false;
    decode_pages(warp, view, table, kv_head, first, end, page, length);
    decode_store_part(warp, shared, view, parts, row, heads, part);
  }
}

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
  pdl_wait();
  const int64_t token = blockIdx.y;
  const int first = static_cast<int>(blockIdx.x) * width;
  const int columns = min(width, out.quantizer.columns - first);
  const int head = first / view.head_dim;
  const int heads = (first + columns - 1) / view.head_dim - head + 1;
  const int count = decode_parts(view.context[token] + 1);
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

size_t combine_shared_bytes(int64_t width, int64_t head_dim) {
  const int heads = combine_heads(static_cast<int>(width), static_cast<int>(head_dim));
  return static_cast<size_t>(heads) * (kMaxDecodeParts + 1) * sizeof(float) +
         static_cast<size_t>(width) * 2;
}

template <typename T>
void launch_decode(const AttentionView<T>& view, const DecodeParts& parts, int64_t decodes,
                   Stream stream) {
  const int head_blocks = (view.group() + kDecodeHeads - 1) / kDecodeHeads;
  const int64_t rows = static_cast<int64_t>(view.kv_heads) * head_blocks * decodes;
  // About four blocks for each multiprocessor of a large GPU; a block takes several parts where
  // there are more. At least four for each sequence: one may be much longer than the others.
  constexpr int64_t kBlocks = 528;
  const int64_t wanted = std::max<int64_t>((kBlocks + rows - 1) / rows, 4);
  const int64_t most = most_decode_parts(static_cast<int64_t>(view.max_pages) * kPageTokens);
  const dim3 grid(static_cast<unsigned>(view.kv_heads * head_blocks),
                  static_cast<unsigned>(decodes), static_cast<unsigned>(std::min(wanted, most)));
  auto* kernel = view.head_dim <= 64    ? attention_decode_kernel<T, 64>
                 : view.head_dim <= 128 ? attention_decode_kernel<T, 128>
                                        : attention_decode_kernel<T, 256>;
  launch(kernel, grid, dim3(kDecodeThreads), 0, stream, view, parts, head_blocks);
}

}  // namespace

bool decode_quantizes(const LinearInput& out, int64_t heads, int64_t head_dim) {
  if (!out.quantized() || out.group % 4 != 0 || out.static_scale > 0.0f) return false;
  return combine_shared_bytes(out.group, head_dim) <= 48 * 1024 - 256 && heads > 0;
}

bool attention_decode(const LinearInput& out, ConstTensor q, const KvPages& kv,
                      const RaggedBatch& batch, Tensor workspace, Stream stream) {
  const int64_t decodes = q.dim(0);
  const int64_t columns = q.dim(1);
  const int64_t head_dim = kv.k.dim(3);
  const int64_t heads = columns / head_dim;
  FLEXQ_FT_CHECK_LE(decodes, 65535, "attention: one-token sequences");
  FLEXQ_FT_CHECK_LE(DecodeParts::bytes(decodes, heads, head_dim), workspace.bytes(),
                    "attention: workspace for ", decodes, " tokens");
  const bool quantizes = decode_quantizes(out, heads, head_dim);
  LinearInput made = out;
  if (!quantizes) made.codes = made.scales = Tensor();
  const int64_t width = quantizes ? out.group : std::min<int64_t>(kCombineColumns, columns);
  const DecodeParts parts(workspace.raw(), decodes, heads, head_dim);
  const dim3 grid(static_cast<unsigned>((columns + width - 1) / width),
                  static_cast<unsigned>(decodes));
  const int64_t threads = std::clamp<int64_t>((width / 4 + 31) / 32 * 32, 32, kCombineThreads);
  dispatch_16_bit(q.dtype(), [&](auto type) {
    using T = decltype(type);
    const AttentionView<T> view(q, kv, batch);
    launch_decode(view, parts, decodes, stream);
    launch(attention_combine_kernel<T>, grid, dim3(static_cast<unsigned>(threads)),
           combine_shared_bytes(width, head_dim), stream, view, parts,
           AttentionOut<T>(made, columns), static_cast<int>(width));
  });
  return quantizes;
}

}  // namespace flexq_ft::gpu
