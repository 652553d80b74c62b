// Hopper's warpgroup matrix instructions ("Asynchronous Warpgroup Level Matrix Instructions" of the
// PTX ISA): int8 in int32, A in registers, B in shared memory. Only for code of sm_90a.
#pragma once

#include <cstdint>

namespace flexq_kernels::gpu {

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

// ---- Sums ----

// Two sets of 32 int32 sums, in registers with names of their own: sums0_0 … sums1_31. As C++
// variables they would be copied where loops begin, and scheduled freely; both make the assembler
// wait for each wgmma before the next. A kernel declares them once, before its first branch.
__device__ __forceinline__ void declare_sums() {
  asm volatile(
      ".reg .b32 sums0_<32>;\n"
      ".reg .b32 sums1_<32>;");
}

// Their names, of the set with the number `set` (text), for the instructions below.
// clang-format off
#define FLEXQ_SUMS_4(set, a, b, c, d) \
  "sums" set "_" #a ",sums" set "_" #b ",sums" set "_" #c ",sums" set "_" #d
#define FLEXQ_SUMS_16(set) \
  FLEXQ_SUMS_4(set, 0, 1, 2, 3) "," FLEXQ_SUMS_4(set, 4, 5, 6, 7) "," \
  FLEXQ_SUMS_4(set, 8, 9, 10, 11) "," FLEXQ_SUMS_4(set, 12, 13, 14, 15)
#define FLEXQ_SUMS_32(set) FLEXQ_SUMS_16(set) "," \
  FLEXQ_SUMS_4(set, 16, 17, 18, 19) "," FLEXQ_SUMS_4(set, 20, 21, 22, 23) "," \
  FLEXQ_SUMS_4(set, 24, 25, 26, 27) "," FLEXQ_SUMS_4(set, 28, 29, 30, 31)
// clang-format on

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

// A set's sums, kAdded added to each.
template <int kSet, int32_t kAdded>
__device__ __forceinline__ void read_sums_plus(int32_t (&sums)[32]) {
  asm volatile(
      "add.s32 %0, sums%32_0, %33;\nadd.s32 %1, sums%32_1, %33;\n"
      "add.s32 %2, sums%32_2, %33;\nadd.s32 %3, sums%32_3, %33;\n"
      "add.s32 %4, sums%32_4, %33;\nadd.s32 %5, sums%32_5, %33;\n"
      "add.s32 %6, sums%32_6, %33;\nadd.s32 %7, sums%32_7, %33;\n"
      "add.s32 %8, sums%32_8, %33;\nadd.s32 %9, sums%32_9, %33;\n"
      "add.s32 %10, sums%32_10, %33;\nadd.s32 %11, sums%32_11, %33;\n"
      "add.s32 %12, sums%32_12, %33;\nadd.s32 %13, sums%32_13, %33;\n"
      "add.s32 %14, sums%32_14, %33;\nadd.s32 %15, sums%32_15, %33;\n"
      "add.s32 %16, sums%32_16, %33;\nadd.s32 %17, sums%32_17, %33;\n"
      "add.s32 %18, sums%32_18, %33;\nadd.s32 %19, sums%32_19, %33;\n"
      "add.s32 %20, sums%32_20, %33;\nadd.s32 %21, sums%32_21, %33;\n"
      "add.s32 %22, sums%32_22, %33;\nadd.s32 %23, sums%32_23, %33;\n"
      "add.s32 %24, sums%32_24, %33;\nadd.s32 %25, sums%32_25, %33;\n"
      "add.s32 %26, sums%32_26, %33;\nadd.s32 %27, sums%32_27, %33;\n"
      "add.s32 %28, sums%32_28, %33;\nadd.s32 %29, sums%32_29, %33;\n"
      "add.s32 %30, sums%32_30, %33;\nadd.s32 %31, sums%32_31, %33;\n"
      : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3]), "=r"(sums[4]), "=r"(sums[5]),
        "=r"(sums[6]), "=r"(sums[7]), "=r"(sums[8]), "=r"(sums[9]), "=r"(sums[10]), "=r"(sums[11]),
        "=r"(sums[12]), "=r"(sums[13]), "=r"(sums[14]), "=r"(sums[15]), "=r"(sums[16]),
        "=r"(sums[17]), "=r"(sums[18]), "=r"(sums[19]), "=r"(sums[20]), "=r"(sums[21]),
        "=r"(sums[22]), "=r"(sums[23]), "=r"(sums[24]), "=r"(sums[25]), "=r"(sums[26]),
        "=r"(sums[27]), "=r"(sums[28]), "=r"(sums[29]), "=r"(sums[30]), "=r"(sums[31])
      : "n"(kSet), "n"(kAdded));
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

// ---- Products ----

// sums = a * b, or sums += a * b where `add`: A [64 x 32] in registers, warp w of the warpgroup its
// rows 16w … 16w + 15 in the order of mma.m16n8k32; B [32 x 64]. Lane 4g + t of warp w has in
// 4j … 4j + 3 of a set: rows 16w + g, the same, 16w + g + 8, the same; columns 8j + 2t, 8j + 2t +
// 1, 8j + 2t, 8j + 2t + 1.
template <int kSet>
__device__ __forceinline__ void wgmma_int8_64(const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
      "{" FLEXQ_SUMS_32("%5") "}, {%0,%1,%2,%3}, %4, add;\n"
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
      "{" FLEXQ_SUMS_16("%5") "}, {%0,%1,%2,%3}, %4, add;\n"
      "}" ::"r"(a[0]),
      "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kSet), "r"(static_cast<int>(add))
      : "memory");
}

// And for 128: B [32 x 128], both sets, one behind the other.
__device__ __forceinline__ void wgmma_int8_128(const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %5, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
      "{" FLEXQ_SUMS_32("0") "," FLEXQ_SUMS_32("1") "}, {%0,%1,%2,%3}, %4, add;\n"
      "}" ::"r"(a[0]),
      "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add))
      : "memory");
}

#undef FLEXQ_SUMS_4
#undef FLEXQ_SUMS_16
#undef FLEXQ_SUMS_32

}  // namespace flexq_kernels::gpu
