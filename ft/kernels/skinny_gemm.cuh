// What a warp needs to multiply rows of a weight, streamed from memory, with a few tokens: loads,
// conversions and tensor-core products on registers. No thread here waits for another.
//
// The weight is the A operand of mma.sync (16 rows), tokens are B (8 columns). A sum over k may be
// taken in any order if both operands agree on it, so the order is the one of memory:
//
//   lane 4g + t reads of rows g and g + 8 the 16-byte piece t of a chunk of four (64 bytes of k)
//
//   row g    | piece 0: lane 4g | piece 1: lane 4g+1 | piece 2: lane 4g+2 | piece 3: lane 4g+3 |
//   token g  | the same k, read by the same lanes                                              |
//
// and the words of its piece are the lane's A registers (and B registers) as they stand: words 2s
// and 2s + 1 for step s. Nothing is shuffled, and no shared memory is passed through.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "flexq_kernels/gpu/async_copy.cuh"
#include "flexq_kernels/gpu/mma.cuh"
#include "ft/kernels/skinny_gemm.h"

namespace flexq_ft::gpu {

using flexq_kernels::gpu::mma_bf16;
using flexq_kernels::gpu::mma_fp16;
using flexq_kernels::gpu::mma_int8;
using flexq_kernels::gpu::stream_once_policy;

template <SkinnyMath kMath>
struct SkinnyTraits {
  static constexpr bool kConverts =
      kMath == SkinnyMath::kW8Fp16 || kMath == SkinnyMath::kW8Bf16;  // int8 weight, 16-bit x
  using Sum = std::conditional_t<kMath == SkinnyMath::kInt8, int32_t, float>;
  static constexpr int kXPieces = kConverts ? 2 : 1;  // of x for one piece of w
};

// ---- loads ----

// 16 bytes that never change while the kernel runs, or zeros; with the rest of their line on its
// way to L2, because the same warp asks for it next.
__device__ __forceinline__ uint4 load_weight(const uint4* from, bool valid, uint64_t policy) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.s32 p, %5, 0;\n"
      " mov.u32 %0, 0;\n mov.u32 %1, 0;\n mov.u32 %2, 0;\n mov.u32 %3, 0;\n"
      " @p ld.global.L1::no_allocate.L2::cache_hint.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4], %6;\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(valid)), "l"(policy));
  return v;
}

__device__ __forceinline__ void prefetch_to_l2(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

// 16 bytes of x, or zeros. Through L1, where the other blocks of the multiprocessor find them; not
// as read-only data, because the kernel in front may have written them while this one ran.
__device__ __forceinline__ uint4 load_activation(const uint4* from, bool valid) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.s32 p, %5, 0;\n"
      " mov.u32 %0, 0;\n mov.u32 %1, 0;\n mov.u32 %2, 0;\n mov.u32 %3, 0;\n"
      " @p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(valid)));
  return v;
}

template <SkinnyMath kMath>
__device__ __forceinline__ void mma(typename SkinnyTraits<kMath>::Sum (&d)[4],
                                    const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kMath == SkinnyMath::kInt8) {
    mma_int8(d, a, b0, b1);
  } else if constexpr (kMath == SkinnyMath::kFp16 || kMath == SkinnyMath::kW8Fp16) {
    mma_fp16(d, a, b0, b1);
  } else {
    mma_bf16(d, a, b0, b1);
  }
}

// ---- four int8 values as 16-bit floats, all exact ----

// 0x6400 | u is the fp16 number 1024 + u for a byte u; with u = q + 128, minus 1152 it is q.
__device__ __forceinline__ void widen_fp16(uint32_t codes, uint32_t& low, uint32_t& high) {
  const uint32_t biased = codes ^ 0x80808080u;
  const uint32_t bias = 0x64806480u;
  uint32_t pair[2] = {__byte_perm(biased, 0x64646464u, 0x4140),
                      __byte_perm(biased, 0x64646464u, 0x4342)};
#pragma unroll
  for (uint32_t& p : pair) asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(p) : "r"(p), "r"(bias));
  low = pair[0];
  high = pair[1];
}

// A bf16 number holds 7 bits below its first: 0x4300 | u is 128 + u for u < 128, and 0x4300 or
// 0x4380, that is 128 or 256, with the sign bit of q in the same place. Their difference is q.
__device__ __forceinline__ void widen_bf16(uint32_t codes, uint32_t& low, uint32_t& high) {
  uint32_t out[2] = {__byte_perm(codes, 0x43434343u, 0x4140),
                     __byte_perm(codes, 0x43434343u, 0x4342)};
#pragma unroll
  for (uint32_t& o : out) {
    const uint32_t parts[2] = {o & 0xff7fff7fu, o & 0xff80ff80u};
    __nv_bfloat162 value, bias;
    memcpy(&value, &parts[0], 4);
    memcpy(&bias, &parts[1], 4);
    const __nv_bfloat162 difference = __hsub2(value, bias);
    memcpy(&o, &difference, 4);
  }
  low = out[0];
  high = out[1];
}

// ---- tile products ----

// i is a constant after unrolling.
__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The A registers of step s (0, 1; of converted weights 0 to 3) of a lane's pieces of rows g, g
// + 8.
template <SkinnyMath kMath>
__device__ __forceinline__ void weight_fragment(uint32_t (&a)[4], const uint4 (&piece)[2], int s) {
  if constexpr (kMath == SkinnyMath::kW8Fp16) {
    widen_fp16(word(piece[0], s), a[0], a[2]);
    widen_fp16(word(piece[1], s), a[1], a[3]);
  } else if constexpr (kMath == SkinnyMath::kW8Bf16) {
    widen_bf16(word(piece[0], s), a[0], a[2]);
    widen_bf16(word(piece[1], s), a[1], a[3]);
  } else {
    a[0] = word(piece[0], 2 * s);
    a[1] = word(piece[1], 2 * s);
    a[2] = word(piece[0], 2 * s + 1);
    a[3] = word(piece[1], 2 * s + 1);
  }
}

// sum[r][first + c] += the chunk of row tile r times that of token tile c, as far as piece p of x
// goes: all of it, or half if one piece of w meets two of x. In sum[r][c], i of 0 to 3 belongs to
// row 16r + g + 8(i / 2) and token 8c + 2t + i % 2.
template <SkinnyMath kMath, int kRowTiles, int kTokenTiles, int kTiles>
__device__ __forceinline__ void multiply_chunk(
    typename SkinnyTraits<kMath>::Sum (&sum)[kRowTiles][kTokenTiles][4],
    const uint4 (&w)[kRowTiles][2], const uint4 (&x)[kTiles], int p, int first) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint32_t a[4];
      weight_fragment<kMath>(a, w[r], 2 * p + s);
#pragma unroll
      for (int c = 0; c < kTiles; ++c) {
        mma<kMath>(sum[r][first + c], a, word(x[c], 2 * s), word(x[c], 2 * s + 1));
      }
    }
  }
}

}  // namespace flexq_ft::gpu
