// Which kernels attention takes on a GPU, and the kernel for what they do not serve.
#include "ft/kernels/attention_common.cuh"
#include "ft/kernels/attention_decode.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

constexpr int kGenericWarps = 4;
constexpr int kGenericColumns = 16;  // of a lane
constexpr int kGenericDim = 32 * kGenericColumns;

// The sequence that a token belongs to: the last that does not begin behind it.
template <typename T>
__device__ __forceinline__ int sequence_of(const AttentionView<T>& view, int token) {
  int low = 0, high = view.sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (view.offsets[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// What a warp has of one query; a lane has columns lane, lane + 32, …
struct GenericWarp {
  float q[kGenericColumns];
  float o[kGenericColumns];
  float m = kMinusInfinity;
  float l = 0.0f;

  template <typename T>
  __device__ __forceinline__ void add(const T* k, const T* v, int head_dim, float scale) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kGenericColumns; ++i) {
      if (lane + 32 * i < head_dim) score += q[i] * to_float(k[lane + 32 * i]);
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) score += __shfl_xor_sync(0xffffffffu, score, i);
    score *= scale;
    const float best = fmaxf(m, score);
    const float base = exponent_base(best);
    const float shrink = exp2f(m - base);
    const float p = exp2f(score - base);
    m = best;
    l = l * shrink + p;
#pragma unroll
    for (int i = 0; i < kGenericColumns; ++i) {
      if (lane + 32 * i < head_dim) o[i] = o[i] * shrink + p * to_float(v[lane + 32 * i]);
    }
  }
};

// Any type and head_dim, value by value: tests compare in fp32. Blocks: (token, query head); warp w
// takes the positions w, w + 4, …
template <typename T>
__global__ void __launch_bounds__(kGenericWarps * 32)
    attention_generic_kernel(AttentionView<T> view, T* out) {
  __shared__ float values[kGenericWarps][kGenericDim];
  __shared__ float2 sums[kGenericWarps];
  pdl_launch_dependents();
  pdl_wait();
  const int token = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / view.group();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int w = static_cast<int>(threadIdx.x) / 32;
  const int sequence = sequence_of(view, token);
  const int last = view.context[sequence] + token - view.offsets[sequence];
  const int32_t* table = view.pages + static_cast<int64_t>(sequence) * view.max_pages;
  const int64_t row = (static_cast<int64_t>(token) * view.heads + head) * view.head_dim;
  GenericWarp warp;
#pragma unroll
  for (int i = 0; i < kGenericColumns; ++i) {
    warp.q[i] = lane + 32 * i < view.head_dim ? to_float(view.q[row + lane + 32 * i]) : 0.0f;
    warp.o[i] = 0.0f;
  }
  for (int position = w; position <= last; position += kGenericWarps) {
    const int64_t at = view.page_at(table[position / kPageTokens], kv_head) +
                       position % kPageTokens * view.head_dim;
    warp.add(view.k + at, view.v + at, view.head_dim, view.scale);
  }
#pragma unroll
  for (int i = 0; i < kGenericColumns; ++i) values[w][lane + 32 * i] = warp.o[i];
  if (lane == 0) sums[w] = make_float2(warp.m, warp.l);
  __syncthreads();
  float best = kMinusInfinity;
  for (int i = 0; i < kGenericWarps; ++i) best = fmaxf(best, sums[i].x);
  const float base = exponent_base(best);
  for (int d = static_cast<int>(threadIdx.x); d < view.head_dim; d += kGenericWarps * 32) {
    float sum = 0.0f, value = 0.0f;
    for (int i = 0; i < kGenericWarps; ++i) {
      const float weight = exp2f(sums[i].x - base);
      sum += weight * sums[i].y;
      value += weight * values[i][d];
    }
    out[row + d] = from_float<T>(value / sum);
  }
}

void attention_generic(Tensor out, ConstTensor q, const KvPages& kv, const RaggedBatch& batch,
                       Stream stream) {
  const int64_t head_dim = kv.k.dim(3);
  FLEXQ_FT_CHECK_LE(head_dim, kGenericDim, "attention on a GPU: head_dim");
  dispatch_compute_type(q.dtype(), [&](auto type) {
    using T = decltype(type);
    const AttentionView<T> view(q, kv, batch);
    const dim3 grid(static_cast<unsigned>(q.dim(0)), static_cast<unsigned>(view.heads));
    launch(attention_generic_kernel<T>, grid, dim3(kGenericWarps * 32), 0, stream, view,
           static_cast<T*>(out.raw()));
  });
}

LinearInput rows_of(const LinearInput& all, int64_t begin, int64_t end) {
  LinearInput out = all;
  if (all.values.defined()) out.values = all.values.rows(begin, end);
  if (!all.quantized()) return out;
  out.codes = all.codes.rows(begin, end);
  if (all.scale_stride == 0) {
    out.scales = all.scales.rows(begin, end);
  } else {  // the same rows, from another column on
    out.scales = Tensor(static_cast<float*>(all.scales.raw()) + begin, all.scales.dtype(),
                        all.scales.shape(), all.scales.device());
  }
  return out;
}

// Codes that need more of a row than a block has are made behind the kernels, from values in `out`;
// if it has none, from values in the place of the queries: a block writes just the part of q that
// it alone has read.
LinearInput with_values(const LinearInput& out, ConstTensor q) {
  LinearInput made = out;
  if (!made.values.defined()) {
    made.values = Tensor(const_cast<void*>(q.raw()), q.dtype(), q.shape(), q.device());
  }
  return made;
}

}  // namespace

void attention(const LinearInput& out, ConstTensor q, KvPages kv, const RaggedBatch& batch,
               Tensor workspace, Stream stream) {
  const int64_t tokens = q.dim(0);
  const int64_t head_dim = kv.k.dim(3);
  if (!attention_uses_tensor_cores(q.dtype(), head_dim)) {
    const LinearInput made = with_values(out, q);
    attention_generic(made.values, q, kv, batch, stream);
    if (out.quantized()) quantize_activations(made, stream);
    return;
  }
  const int64_t decodes = batch.decodes;
  if (decodes > 0) {
    const ConstTensor queries = q.rows(0, decodes);
    LinearInput made = rows_of(out, 0, decodes);
    if (!decode_quantizes(out, q.dim(1) / head_dim, head_dim)) made = with_values(made, queries);
    const bool done = attention_decode(made, queries, kv, batch, workspace, stream);
    if (made.quantized() && !done) quantize_activations(made, stream);
  }
  if (tokens > decodes) {
    LinearInput made = out;
    if (!prefill_quantizes(out, head_dim)) made = with_values(made, q);
    const bool done = attention_prefill(made, q, kv, batch, stream);
    if (made.quantized() && !done) {
      quantize_activations(rows_of(made, decodes, tokens), stream);
    }
  }
}

size_t attention_workspace_bytes(const AttentionSizes& sizes) { return DecodeParts::bytes(sizes); }

}  // namespace flexq_ft::gpu
