// Hopper's asynchronous instructions, one wrapper each: mbarriers, tensor copies (TMA) into shared
// memory, register counts per warpgroup, clusters; wgmma is in wgmma.cuh. Sections named below are
// of the PTX ISA. Only for code of sm_90a.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing is linked

#include <cstdint>

#include "flexq_kernels/gpu/async_copy.cuh"  // shared_address

namespace flexq_kernels::gpu {

// ---- Clusters ----

// Of a kernel: so many blocks form a cluster. A library that is compiled for older GPUs too has the
// kernel's name, without its body, there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FLEXQ_CLUSTER(blocks)
#else
#define FLEXQ_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#endif

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Of all threads of the cluster. Orders no memory: initialised mbarriers have their own fence.
__device__ __forceinline__ void cluster_sync_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Of all threads of the cluster: what they read and wrote before is ordered before what the others
// do behind it.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where a block of the cluster has what this one has at an address of shared memory.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

__device__ __forceinline__ void load_cluster_floats(float (&v)[4], uint32_t from) {
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(from)
               : "memory");
}

// ---- mbarriers ("Parallel Synchronization … mbarrier") ----
// A phase ends when all its arrivals and all its announced bytes have come. Parity p waits for the
// end of phase p, p + 2, …; the first phase is 0, so that waiting for parity 1 of a fresh barrier
// returns at once.

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine and to the cluster.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// At the same place in another block of the cluster: says that what was read may be overwritten. Of
// writes before it promises nothing: a release at the cluster's scope is a fence that waits for
// every copy that the multiprocessor has on its way.
__device__ __forceinline__ void mbarrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Has the phase ended? One attempt each.
#define FLEXQ_MBARRIER_TEST(name, instruction)                              \
  __device__ __forceinline__ bool name(uint32_t barrier, uint32_t parity) { \
    uint32_t done;                                                          \
    asm volatile(                                                           \
        "{\n"                                                               \
        ".reg .pred done;\n" instruction                                    \
        " done, [%1], %2;\n"                                                \
        "selp.u32 %0, 1, 0, done;\n"                                        \
        "}"                                                                 \
        : "=r"(done)                                                        \
        : "r"(barrier), "r"(parity)                                         \
        : "memory");                                                        \
    return done != 0;                                                       \
  }
// Which may suspend the thread for a while; the same of a barrier that counts what other blocks of
// the cluster write here; and without suspending.
FLEXQ_MBARRIER_TEST(mbarrier_try_wait, "mbarrier.try_wait.parity.shared::cta.b64")
FLEXQ_MBARRIER_TEST(mbarrier_try_wait_cluster,
                    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64")
FLEXQ_MBARRIER_TEST(mbarrier_passed, "mbarrier.test_wait.parity.shared::cta.b64")
#undef FLEXQ_MBARRIER_TEST

// A place in a ring of stages, each with barriers, and the parity of the phase that these are in.
template <int kStages>
struct RingPlace {
  uint32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// ---- Copies of bytes, global to shared memory ("cp.async.bulk") ----
// By one thread. Both addresses and the bytes are multiples of 16; policy: of the L2
// (createpolicy).

__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, uint32_t bytes,
                                           uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// ---- Tensor copies, global to shared memory ("cp.async.bulk.tensor") ----
// By one thread. What lies outside the tensor arrives as zeros and counts as bytes.

// Maps are kernel parameters, or older than the kernels in front, and may be fetched before
// pdl_wait().
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                            int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                            int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                            int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// With a policy of the L2 (createpolicy).
__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                            int x, int y, int z, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}

// To the same place in every block of the cluster whose bit is set; each one's barrier counts.
__device__ __forceinline__ void multicast_tensor(uint32_t to, const CUtensorMap& map,
                                                 uint32_t barrier, int x, int y, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

// ---- Copies of shared memory to another block of the cluster ("cp.async.bulk") ----

// What the thread wrote is seen by copies that it, or a thread behind a barrier, asks for.
__device__ __forceinline__ void copies_see_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// By one thread; `to` and the barrier are the other block's, at these places of its own memory.
__device__ __forceinline__ void copy_to_block(uint32_t rank, uint32_t to, uint32_t from,
                                              uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 remote, counted;\n"
      "mapa.shared::cluster.u32 remote, %0, %4;\n"
      "mapa.shared::cluster.u32 counted, %3, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[remote], [%1], %2, [counted];\n"
      "}" ::"r"(to),
      "r"(from), "r"(bytes), "r"(barrier), "r"(rank)
      : "memory");
}

// ---- Flags between blocks ----

__device__ __forceinline__ int32_t load_acquire(const int32_t* flag) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(int32_t* flag, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// ---- Registers per thread, changed by a whole warpgroup ----

template <int kCount>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace flexq_kernels::gpu
