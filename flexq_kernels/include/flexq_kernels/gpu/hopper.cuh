// Hopper's asynchronous instructions, one wrapper each: mbarriers, tensor copies (TMA) into shared
// memory, wgmma with A in registers, register counts per warpgroup, clusters. Sections named below
// are of the PTX ISA. Only for code of sm_90a.
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

// At the same place in another block of the cluster.
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

// One attempt, which may suspend the thread for a while: has the phase ended?
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// The same without suspending.
__device__ __forceinline__ bool mbarrier_passed(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

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

// ---- wgmma ("Asynchronous Warpgroup Level Matrix Instructions") ----

// Descriptor of a K-major operand in shared memory whose rows are 128 bytes, written by a tensor
// copy with the 128-byte swizzle: eight rows, 1024 bytes, to the next core matrix, and a place that
// is a multiple of 1024. 32 k further on is 32 bytes: kDescriptorStep added; 64 rows further on is
// 8 KB: kDescriptorRows64.
__device__ __forceinline__ uint32_t descriptor_address(uint32_t address) {
  return (address & 0x3ffff) >> 4 | 1u << 16;
}
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t descriptor_address) {
  constexpr uint32_t kStride = 1024 / 16, kSwizzle128 = 1u << 30;
  return static_cast<uint64_t>(kSwizzle128 | kStride) << 32 | descriptor_address;
}
constexpr uint32_t kDescriptorStep = 32 / 16, kDescriptorRows64 = 64 * 128 / 16;

// Registers written before are seen by the wgmmas that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until no more than kLeft groups are under way.
template <int kLeft>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// Two sets of 32 int32 sums, in registers with names of their own: sums0_0 … sums1_31. As C++
// variables they would be copied where loops begin, and scheduled freely; both make the assembler
// wait for each wgmma before the next. A kernel declares them once, before its first branch.
__device__ __forceinline__ void declare_sums() {
  asm volatile(
      ".reg .b32 sums0_<32>;\n"
      ".reg .b32 sums1_<32>;");
}

// sums = a * b, or sums += a * b where `add`: int8 in int32, A [64 x 32] in registers, warp w of
// the warpgroup its rows 16w … 16w + 15 in the order of mma.m16n8k32; B [32 x 64] in shared memory.
// Lane 4g + t of warp w has in 4j … 4j + 3 of a set: rows 16w + g, the same, 16w + g + 8, the same;
// columns 8j + 2t, 8j + 2t + 1, 8j + 2t, 8j + 2t + 1.
template <int kSet>
__device__ __forceinline__ void wgmma_int8(const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
      "{sums%5_0,sums%5_1,sums%5_2,sums%5_3,sums%5_4,sums%5_5,sums%5_6,sums%5_7,"
      "sums%5_8,sums%5_9,sums%5_10,sums%5_11,sums%5_12,sums%5_13,sums%5_14,sums%5_15,"
      "sums%5_16,sums%5_17,sums%5_18,sums%5_19,sums%5_20,sums%5_21,sums%5_22,sums%5_23,"
      "sums%5_24,sums%5_25,sums%5_26,sums%5_27,sums%5_28,sums%5_29,sums%5_30,sums%5_31}, "
      "{%0,%1,%2,%3}, %4, add;\n"
      "}" ::"r"(a[0]),
      "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kSet), "r"(static_cast<int>(add))
      : "memory");
}

// The same for 32 tokens: B [32 x 32], the first 16 of a set.
template <int kSet>
__device__ __forceinline__ void wgmma_int8_32(const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
      "{sums%5_0,sums%5_1,sums%5_2,sums%5_3,sums%5_4,sums%5_5,sums%5_6,sums%5_7,"
      "sums%5_8,sums%5_9,sums%5_10,sums%5_11,sums%5_12,sums%5_13,sums%5_14,sums%5_15}, "
      "{%0,%1,%2,%3}, %4, add;\n"
      "}" ::"r"(a[0]),
      "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kSet), "r"(static_cast<int>(add))
      : "memory");
}

// A set's sums as floats; they are exact below 2^24.
template <int kSet>
__device__ __forceinline__ void read_sums(float (&sums)[32]) {
  asm volatile(
      "cvt.rn.f32.s32 %0, sums%32_0;\ncvt.rn.f32.s32 %1, sums%32_1;\n"
      "cvt.rn.f32.s32 %2, sums%32_2;\ncvt.rn.f32.s32 %3, sums%32_3;\n"
      "cvt.rn.f32.s32 %4, sums%32_4;\ncvt.rn.f32.s32 %5, sums%32_5;\n"
      "cvt.rn.f32.s32 %6, sums%32_6;\ncvt.rn.f32.s32 %7, sums%32_7;\n"
      "cvt.rn.f32.s32 %8, sums%32_8;\ncvt.rn.f32.s32 %9, sums%32_9;\n"
      "cvt.rn.f32.s32 %10, sums%32_10;\ncvt.rn.f32.s32 %11, sums%32_11;\n"
      "cvt.rn.f32.s32 %12, sums%32_12;\ncvt.rn.f32.s32 %13, sums%32_13;\n"
      "cvt.rn.f32.s32 %14, sums%32_14;\ncvt.rn.f32.s32 %15, sums%32_15;\n"
      "cvt.rn.f32.s32 %16, sums%32_16;\ncvt.rn.f32.s32 %17, sums%32_17;\n"
      "cvt.rn.f32.s32 %18, sums%32_18;\ncvt.rn.f32.s32 %19, sums%32_19;\n"
      "cvt.rn.f32.s32 %20, sums%32_20;\ncvt.rn.f32.s32 %21, sums%32_21;\n"
      "cvt.rn.f32.s32 %22, sums%32_22;\ncvt.rn.f32.s32 %23, sums%32_23;\n"
      "cvt.rn.f32.s32 %24, sums%32_24;\ncvt.rn.f32.s32 %25, sums%32_25;\n"
      "cvt.rn.f32.s32 %26, sums%32_26;\ncvt.rn.f32.s32 %27, sums%32_27;\n"
      "cvt.rn.f32.s32 %28, sums%32_28;\ncvt.rn.f32.s32 %29, sums%32_29;\n"
      "cvt.rn.f32.s32 %30, sums%32_30;\ncvt.rn.f32.s32 %31, sums%32_31;\n"
      : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3]), "=f"(sums[4]), "=f"(sums[5]),
        "=f"(sums[6]), "=f"(sums[7]), "=f"(sums[8]), "=f"(sums[9]), "=f"(sums[10]), "=f"(sums[11]),
        "=f"(sums[12]), "=f"(sums[13]), "=f"(sums[14]), "=f"(sums[15]), "=f"(sums[16]),
        "=f"(sums[17]), "=f"(sums[18]), "=f"(sums[19]), "=f"(sums[20]), "=f"(sums[21]),
        "=f"(sums[22]), "=f"(sums[23]), "=f"(sums[24]), "=f"(sums[25]), "=f"(sums[26]),
        "=f"(sums[27]), "=f"(sums[28]), "=f"(sums[29]), "=f"(sums[30]), "=f"(sums[31])
      : "n"(kSet));
}

template <int kSet>
__device__ __forceinline__ void read_sums(float (&sums)[16]) {
  asm volatile(
      "cvt.rn.f32.s32 %0, sums%16_0;\ncvt.rn.f32.s32 %1, sums%16_1;\n"
      "cvt.rn.f32.s32 %2, sums%16_2;\ncvt.rn.f32.s32 %3, sums%16_3;\n"
      "cvt.rn.f32.s32 %4, sums%16_4;\ncvt.rn.f32.s32 %5, sums%16_5;\n"
      "cvt.rn.f32.s32 %6, sums%16_6;\ncvt.rn.f32.s32 %7, sums%16_7;\n"
      "cvt.rn.f32.s32 %8, sums%16_8;\ncvt.rn.f32.s32 %9, sums%16_9;\n"
      "cvt.rn.f32.s32 %10, sums%16_10;\ncvt.rn.f32.s32 %11, sums%16_11;\n"
      "cvt.rn.f32.s32 %12, sums%16_12;\ncvt.rn.f32.s32 %13, sums%16_13;\n"
      "cvt.rn.f32.s32 %14, sums%16_14;\ncvt.rn.f32.s32 %15, sums%16_15;\n"
      : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3]), "=f"(sums[4]), "=f"(sums[5]),
        "=f"(sums[6]), "=f"(sums[7]), "=f"(sums[8]), "=f"(sums[9]), "=f"(sums[10]), "=f"(sums[11]),
        "=f"(sums[12]), "=f"(sums[13]), "=f"(sums[14]), "=f"(sums[15])
      : "n"(kSet));
}

}  // namespace flexq_kernels::gpu
