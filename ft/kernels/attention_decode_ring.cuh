// The ring of pages that a warp of decode attention has in shared memory. A slot is K or V of one
// page, [16 positions][kDim / 8] words of 16 bytes; a word's place in its row is turned by its
// position, so that no eight lanes of a read or of a copy meet in a bank.
#pragma once

#include "ft/kernels/attention_common.cuh"

namespace flexq_ft::gpu {

template <int kDim>
struct DecodeRing {
  static constexpr int kRow = kDim * 2;  // bytes
  static constexpr int kBytes = kPageTokens * kRow;
  static constexpr int kSlots = kDim > 64 ? 3 : 5;  // odd: V is copied to where K was
  static constexpr int kWarpBytes = kSlots * kBytes;

  uint32_t first;   // address of slot 0
  uint32_t at = 0;  // bytes from there to the slot that is next

  __device__ __forceinline__ explicit DecodeRing(const void* warps)
      : first(shared_address(warps) + threadIdx.x / 32 * kWarpBytes) {}

  __device__ __forceinline__ void advance() { at = at + kBytes == kWarpBytes ? 0 : at + kBytes; }

  // Turns are linear: turn(a ^ b) = turn(a) ^ turn(b), in bytes.
  static __host__ __device__ constexpr int turn(int position) {
    return (position / 2 % 4 * 2 ^ position % 2 * 4) * 16;
  }

  // What reads and copies address is `lane`, of the lane, turned by a constant, and a constant.
  __device__ __forceinline__ uint32_t address(int lane, int turned, int constant) const {
    return first + at + (lane ^ turned) + constant;
  }

  static __device__ __forceinline__ uint4 load(uint32_t address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
  }

  // Begins to copy a page; `count` of its positions are seen, the others are zeros here.
  template <typename T>
  __device__ __forceinline__ void copy(const T* page, int count, int head_dim) const {
    constexpr int kWords = kRow / 16, kRows = 32 / kWords;  // of a row; rows at a time
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = lane / kWords, column = lane % kWords * 8;
    const int to = row * kRow + (column * 2 ^ turn(row));
    const int rows = column < head_dim ? count - row : 0;
    const T* from = page + row * head_dim + column;
#pragma unroll 8  // more would take registers that the widest rows have not
    for (int position = 0; position < kPageTokens; position += kRows) {
      const bool there = position < rows;
      copy_async_or_zero<16>(address(to, turn(position), position * kRow),
                             there ? from + position * head_dim : page, there);
    }
  }

  // Word j of K's position 8b + g, from lane t of four on.
  __device__ __forceinline__ uint4 k(int b, int j) const {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
    return load(address(g * kRow + (t * 16 ^ turn(g)), j * 64, b * 8 * kRow));
  }

  // Word g of column block c of V's position 2t + i % 2 + i / 2 * 8.
  __device__ __forceinline__ uint4 v(int i, int c) const {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
    return load(address(2 * t * kRow + (g * 16 ^ turn(2 * t)), turn(i % 2),
                        (i % 2 + i / 2 * 8) * kRow + c * 128));
  }
};

}  // namespace flexq_ft::gpu
