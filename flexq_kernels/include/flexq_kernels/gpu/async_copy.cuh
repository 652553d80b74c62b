// Copies of a thread into shared memory that are under way while it goes on: cp.async (sm_80 and
// later), one instruction each (PTX ISA).
#pragma once

#include <cstdint>

namespace flexq_kernels::gpu {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// For what passes through once: it must not push out of L2 what is read again.
__device__ __forceinline__ uint64_t stream_once_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// 16 bytes, past L1. `policy` says how long L2 keeps them.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "l"(policy)
               : "memory");
}

__device__ __forceinline__ void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// kBytes, 4, 8 or 16; zeros where the source is not there.
template <int kBytes>
__device__ __forceinline__ void copy_async_or_zero(uint32_t to, const void* from, bool there) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(there ? kBytes : 0)
                 : "memory");
  }
}

// What was asked for since the last time becomes a group; it may be empty.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }

// Until no more than kLeft of this thread's groups are under way. Other threads see what it copied
// behind a barrier.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace flexq_kernels::gpu
