// Six-bit codes as fp16 or bf16, exactly: what unpack_int6 leaves in a register, four bytes that
// are each four times a code, becomes two registers of two values.
//
//   bytes of R    | 3 | 2 | 1 | 0 |  ->  low | 1 | 0 |,  high | 3 | 2 |
//
// A byte without sign, u, below the bits of a power of two is that power plus u; the power and the
// offset of the sign are then subtracted.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flexq_kernels/gpu/mma.cuh"

namespace flexq_kernels::gpu {

// T: __half or __nv_bfloat16.
template <typename T>
struct CodeValues;

template <>
struct CodeValues<__half> {
  // 0x6400 | u is 1024 + u, of u = 4 * (code + 32); and (1024 + u) / 4 - 288 is the code.
  static __device__ __forceinline__ void widen(uint32_t& low, uint32_t& high, uint32_t quadruple) {
    const uint32_t u = quadruple ^ 0x80808080u;
    low = offset(__byte_perm(u, 0x64646464u, 0x4140));
    high = offset(__byte_perm(u, 0x64646464u, 0x4342));
  }

  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b) {
    mma_fp16(d, a, b.x, b.y);
  }

  static __device__ __forceinline__ float2 as_floats(uint32_t pair) {
    return __half22float2(__halves2half2(__ushort_as_half(pair & 0xffff),
                                         __ushort_as_half(static_cast<uint16_t>(pair >> 16))));
  }

  static __device__ __forceinline__ uint32_t rounded(float first, float second) {
    const __half2 pair = __floats2half2_rn(first, second);
    return uint32_t{__half_as_ushort(__high2half(pair))} << 16 | __half_as_ushort(__low2half(pair));
  }

 private:
  static __device__ __forceinline__ uint32_t offset(uint32_t biased) {
    uint32_t value;
    asm("fma.rn.f16x2 %0, %1, %2, %3;"
        : "=r"(value)
        : "r"(biased), "r"(0x34003400u), "r"(0xdc80dc80u));  // 0.25, -288
    return value;
  }
};

template <>
struct CodeValues<__nv_bfloat16> {
  // 0x4300 | u is 128 + u, of u = code + 32 below 128. The two bits below each code are zeros, so
  // nothing crosses from byte to byte.
  static __device__ __forceinline__ void widen(uint32_t& low, uint32_t& high, uint32_t quadruple) {
    const uint32_t u = (quadruple >> 2) ^ 0x20202020u;
    low = offset(__byte_perm(u, 0x43434343u, 0x4140));
    high = offset(__byte_perm(u, 0x43434343u, 0x4342));
  }

  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b) {
    mma_bf16(d, a, b.x, b.y);
  }

  static __device__ __forceinline__ float2 as_floats(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }

  static __device__ __forceinline__ uint32_t rounded(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return uint32_t{__bfloat16_as_ushort(__high2bfloat16(pair))} << 16 |
           __bfloat16_as_ushort(__low2bfloat16(pair));
  }

 private:
  static __device__ __forceinline__ uint32_t offset(uint32_t biased) {
    uint32_t value;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(value)
        : "r"(biased), "r"(0x3f803f80u), "r"(0xc320c320u));  // 1, -160
    return value;
  }
};

}  // namespace flexq_kernels::gpu
