// How weights come from memory; one instruction each (PTX ISA). Copies into shared memory:
// async_copy.cuh.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "flexq_kernels/gpu/async_copy.cuh"

namespace flexq_kernels::gpu {

// 16 bytes that never change while the kernel runs.
__device__ __forceinline__ uint4 load_weight(const void* from, uint64_t policy) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from), "l"(policy));
  return v;
}

__device__ __forceinline__ __half load_weight_scale(const void* from) {
  uint16_t v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(from));
  return __ushort_as_half(v);
}

}  // namespace flexq_kernels::gpu
