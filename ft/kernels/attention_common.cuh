// What the attention kernels share: tensor core wrappers, the paged cache as they read it, and the
// quantiser of their outputs.
//
// Fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), lane = 4 g + t:
//   A [16 x 16]: a0 = (row g,     k 2t, 2t+1)    a1 = (row g + 8, k 2t, 2t+1)
//                a2 = (row g, k 2t+8, 2t+9)      a3 = (row g + 8, k 2t+8, 2t+9)
//   B [16 x 8]:  b0 = (k 2t, 2t+1, column g)     b1 = (k 2t+8, 2t+9, column g)
//   C [16 x 8]:  c0, c1 = (row g, columns 2t, 2t+1)   c2, c3 = (row g + 8, the same)
#pragma once

#include "flexq_kernels/gpu/async_copy.cuh"
#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/launch.cuh"
#include "ft/kernels/paged_kv.h"
#include "ft/kernels/product.h"
#include "ft/kernels/quantize.cuh"

namespace flexq_ft::gpu {

using flexq_kernels::gpu::commit_copies;
using flexq_kernels::gpu::copy_async_or_zero;
using flexq_kernels::gpu::shared_address;
using flexq_kernels::gpu::wait_copies;

constexpr float kMinusInfinity = -__builtin_huge_valf();

__device__ __forceinline__ uint32_t pack2(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack2(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float2 unpack2(uint32_t pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
__device__ __forceinline__ float2 unpack2(uint32_t pair, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

__device__ __forceinline__ void mma_16816(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_16816(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 2^x; 2^0 is 1 exactly, 2^-inf is 0, of NaN NaN.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What is subtracted from the exponents of a row whose maximum is m: where nothing was seen but
// -inf the exponentials are 0, not NaN.
__device__ __forceinline__ float exponent_base(float m) { return m == kMinusInfinity ? 0.0f : m; }

// Over the four lanes that share a row of C.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Queries and the cache as the kernels read them.
template <typename T>
struct AttentionView {
  const T* q;  // [tokens][heads][head_dim]
  const T* k;  // [num_pages][kv_heads][16][head_dim]
  const T* v;
  const int32_t* offsets;
  const int32_t* context;
  const int32_t* pages;  // [sequences][max_pages]
  int heads;
  int kv_heads;
  int head_dim;
  int max_pages;
  int sequences;
  float scale;  // log2(e) / sqrt(head_dim): scores are exponents of 2

  AttentionView(ConstTensor q_tensor, const KvPages& kv, const RaggedBatch& batch)
      : q(static_cast<const T*>(q_tensor.raw())),
        k(static_cast<const T*>(kv.k.raw())),
        v(static_cast<const T*>(kv.v.raw())),
        offsets(static_cast<const int32_t*>(batch.offsets.raw())),
        context(static_cast<const int32_t*>(batch.context.raw())),
        pages(static_cast<const int32_t*>(batch.pages.raw())),
        heads(static_cast<int>(q_tensor.dim(1) / kv.k.dim(3))),
        kv_heads(static_cast<int>(kv.k.dim(1))),
        head_dim(static_cast<int>(kv.k.dim(3))),
        max_pages(static_cast<int>(batch.pages.dim(1))),
        sequences(static_cast<int>(batch.sequences())),
        scale(1.4426950408889634f / __builtin_sqrtf(static_cast<float>(kv.k.dim(3)))) {}

  __host__ __device__ __forceinline__ int group() const { return heads / kv_heads; }
  // Elements from the start of k or v to a page of a KV head.
  __device__ __forceinline__ int64_t page_at(int page, int kv_head) const {
    return (static_cast<int64_t>(page) * kv_heads + kv_head) * kPageTokens * head_dim;
  }
};

// Where a kernel writes. Null values or codes: not asked for.
template <typename T>
struct AttentionOut {
  T* values;
  Quantizer quantizer;

  AttentionOut(const LinearInput& out, int64_t k)
      : values(static_cast<T*>(out.values.raw())), quantizer(out, k) {}
};

// Four codes as they lie in memory.
__device__ __forceinline__ uint32_t pack_codes(const float (&x)[4], float inverse, int limit) {
  uint32_t word = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    word |= (static_cast<uint32_t>(quantized(x[e], inverse, limit)) & 0xffu) << (8 * e);
  }
  return word;
}

// Host side.

// Do the tensor core kernels serve this? The generic kernel does otherwise.
inline bool attention_uses_tensor_cores(DataType dtype, int64_t head_dim) {
  return dtype != DataType::kFp32 && head_dim % 8 == 0 && head_dim <= 256;
}

// Calls f(T{}) for the 16-bit types.
template <typename F>
void dispatch_16_bit(DataType dtype, F&& f) {
  if (dtype == DataType::kBf16) return f(__nv_bfloat16{});
  f(__half{});
}

// Both return whether codes were made too, where they are asked for; if not, out.values must be
// defined. Of decodes: out and q hold those tokens alone. Of the others: all tokens.
bool attention_decode(const LinearInput& out, ConstTensor q, const KvPages& kv,
                      const RaggedBatch& batch, Tensor workspace, Stream stream);
bool attention_prefill(const LinearInput& out, ConstTensor q, const KvPages& kv,
                       const RaggedBatch& batch, Stream stream);
// Can they make these codes themselves?
bool decode_quantizes(const LinearInput& out, int64_t heads, int64_t head_dim);
bool prefill_quantizes(const LinearInput& out, int64_t head_dim);

}  // namespace flexq_ft::gpu
