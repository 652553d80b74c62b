// Hopper's warpgroup matrix instructions ("Asynchronous Warpgroup Level Matrix Instructions" of the
// PTX ISA) of 16-bit floats, added up in fp32. Only for code of sm_90a.
//
// Lane 4g + t of warp w of the warpgroup has in 4j … 4j + 3 of sums [64 x N]: rows 16w + g, the
// same, 16w + g + 8, the same; columns 8j + 2t, 8j + 2t + 1, 8j + 2t, 8j + 2t + 1. Of an A in
// registers warp w has rows 16w … 16w + 15 in the order of mma.m16n8k16.
//
// Matrices in shared memory lie in panels of 64 columns, whose rows are 128 bytes with the 128-byte
// swizzle, as tensor copies write them. Eight rows of a panel, 1024 bytes, start at a multiple of
// 1024.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flexq_kernels/gpu/wgmma.cuh"

namespace flexq_ft::gpu {

using flexq_kernels::gpu::wgmma_commit;
using flexq_kernels::gpu::wgmma_fence;
using flexq_kernels::gpu::wgmma_wait;

// The byte where an element lies whose matrix has panels `panel` bytes and eights of rows `rows8`
// bytes apart.
__device__ __forceinline__ int panel_byte(int panel, int rows8, int row, int column) {
  return column / 64 * panel + row / 8 * rows8 + row % 8 * 128 +
         ((column % 64 / 8) ^ (row % 8)) * 16 + column % 8 * 2;
}

// Of a matrix whose eights of rows are `rows8` bytes apart. Columns are k (A, and B of scores): 16
// k further on is 32 bytes within a panel, 2 added to the descriptor. Rows are k (B of values): 16
// k are two eights, and panels are 1024 bytes apart.
__device__ __forceinline__ uint64_t panel_descriptor(uint32_t address, uint32_t rows8) {
  constexpr uint32_t kPanel = 1024 / 16, kSwizzle128 = 1u << 30;
  return static_cast<uint64_t>(kSwizzle128 | rows8 / 16) << 32 | kPanel << 16 |
         (address & 0x3ffff) >> 4;
}

// To the compiler the sums change here: none is read before, and none is written behind.
template <int kCount>
__device__ __forceinline__ void fence_sums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// clang-format off
#define FLEXQ_SUMS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLEXQ_SUMS_16(d, i) \
  FLEXQ_SUMS_4(d, i), FLEXQ_SUMS_4(d, i + 4), FLEXQ_SUMS_4(d, i + 8), FLEXQ_SUMS_4(d, i + 12)
#define FLEXQ_SUMS_32(d, i) FLEXQ_SUMS_16(d, i), FLEXQ_SUMS_16(d, i + 16)
#define FLEXQ_NAMES_32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FLEXQ_NAMES_64 FLEXQ_NAMES_32 "," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// For a type T that the instruction calls `type`:
//   wgmma_scores   sums [64 x 128] = or += a bᵀ: A [64 x 16] and B [128 x 16] in panels
//   wgmma_values   sums [64 x 128 or 64] += a b: A [64 x 16] in registers, B [16 x …] in panels
#define FLEXQ_WGMMA(T, type)                                                                      \
  template <bool kAdd>                                                                            \
  __device__ __forceinline__ void wgmma_scores(float (&sums)[64], uint64_t a, uint64_t b, T) {    \
    asm volatile(                                                                                 \
        "{\n"                                                                                     \
        ".reg .pred add;\n"                                                                       \
        "setp.ne.b32 add, %66, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                              \
        " {" FLEXQ_NAMES_64 "}, %64, %65, add, 1, 1, 0, 0;\n"                                     \
        "}"                                                                                       \
        : FLEXQ_SUMS_32(sums, 0), FLEXQ_SUMS_32(sums, 32)                                         \
        : "l"(a), "l"(b), "n"(static_cast<int>(kAdd))                                             \
        : "memory");                                                                              \
  }                                                                                               \
  __device__ __forceinline__ void wgmma_values(float (&sums)[64], const uint32_t* a, uint64_t b,  \
                                               T) {                                               \
    asm volatile(                                                                                 \
        "{\n"                                                                                     \
        ".reg .pred add;\n"                                                                       \
        "setp.ne.b32 add, 1, 0;\n"                                                                \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                              \
        " {" FLEXQ_NAMES_64 "}, {%64,%65,%66,%67}, %68, add, 1, 1, 1;\n"                          \
        "}"                                                                                       \
        : FLEXQ_SUMS_32(sums, 0), FLEXQ_SUMS_32(sums, 32)                                         \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                      \
        : "memory");                                                                              \
  }                                                                                               \
  __device__ __forceinline__ void wgmma_values(float (&sums)[32], const uint32_t* a, uint64_t b,  \
                                               T) {                                               \
    asm volatile(                                                                                 \
        "{\n"                                                                                     \
        ".reg .pred add;\n"                                                                       \
        "setp.ne.b32 add, 1, 0;\n"                                                                \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                               \
        " {" FLEXQ_NAMES_32 "}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n"                          \
        "}"                                                                                       \
        : FLEXQ_SUMS_32(sums, 0)                                                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                      \
        : "memory");                                                                              \
  }
FLEXQ_WGMMA(__half, "f16")
FLEXQ_WGMMA(__nv_bfloat16, "bf16")
// clang-format on

#undef FLEXQ_SUMS_4
#undef FLEXQ_SUMS_16
#undef FLEXQ_SUMS_32
#undef FLEXQ_NAMES_32
#undef FLEXQ_NAMES_64
#undef FLEXQ_WGMMA

}  // namespace flexq_ft::gpu
