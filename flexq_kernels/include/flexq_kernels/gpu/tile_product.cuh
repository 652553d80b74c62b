// One tile of a weight (16 rows x one group of k) times the same group of a few tokens, by one
// warp: what every kernel that streams W6 weights past a handful of tokens does in its inner loop.
//
//   weight   3 x LDS.128 per lane, chunk c of lane l at 512 c + 16 l: the twelve words of int6.cuh
//   tokens   in registers, CodeOrder::kFragment: 8 words per lane and tile of 8 tokens
//   sums     lane 4g + t: rows g, g + 8 of the weight, tokens 2t, 2t + 1 of each token tile
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/gpu/int6.cuh"

namespace flexq_kernels::gpu {

constexpr int kTokenTile = 8;                   // tokens of one mma
constexpr int kTileScaleBytes = 2 * kTileRows;  // fp16, one per row

// A lane's words of a tile.
struct TileWords {
  uint4 chunk[3];

  __device__ __forceinline__ uint32_t operator[](int i) const {  // i: known at compile time
    const uint4& c = chunk[i / 4];
    return i % 4 == 0 ? c.x : i % 4 == 1 ? c.y : i % 4 == 2 ? c.z : c.w;
  }
};

// Scales of a lane's two rows.
struct TileScales {
  __half low, high;
};

// From shared memory, by its 32-bit address.
__device__ __forceinline__ uint4 load_shared_words(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from));
  return v;
}

__device__ __forceinline__ TileWords load_tile(uint32_t tile, int lane) {
  const uint32_t words = tile + lane * 16;
  return {
      {load_shared_words(words), load_shared_words(words + 512), load_shared_words(words + 1024)}};
}

__device__ __forceinline__ TileScales load_tile_scales(uint32_t scales, int lane) {
  const uint32_t rows = scales + lane / 4 * 2;
  uint16_t low, high;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(low) : "r"(rows));
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(high) : "r"(rows + 16));
  return {__ushort_as_half(low), __ushort_as_half(high)};
}

// A group of 8 * kTokenTiles tokens.
template <int kTokenTiles>
struct TokenFragment {
  uint4 codes[kTokenTiles][2];
  float2 scales[kTokenTiles];  // of tokens 2t, 2t + 1
};

// Reads a lane's fragments of the tokens `first` … of x, into registers or, ahead of their use,
// into a slot of shared memory that is the warp's own. Tokens past m are zeros, and not read.
//
//   slot   [kTokenTiles][2][32 lanes] 16 bytes of codes, then [kTokenTiles][4] scales of 2 tokens
//
// Ordinary loads: the kernel in front may have written x while this one ran, so it is not data that
// the read-only path may keep.
template <int kTokenTiles>
class TokenReader {
 public:
  static constexpr int kCodeBytes = kTokenTiles * 1024;
  static constexpr int kSlotBytes = kCodeBytes + kTokenTiles * 32;

  __device__ __forceinline__ TokenReader(const Activations& x, int m, int groups, int first,
                                         int lane)
      : lane_(lane),
        left_(m - first - lane / 4),
        scales_left_(m - first - lane % 4 * 2),
        tile_bytes_(groups * kGroupSize * kTokenTile),
        scale_stride_(static_cast<int>(x.scale_stride)),
        codes_(x.codes + int64_t{first + lane / 4} * groups * kGroupSize + lane % 4 * 32),
        scales_(x.scales + first + lane % 4 * 2) {}

  __device__ __forceinline__ TokenFragment<kTokenTiles> load(int group) const {
    TokenFragment<kTokenTiles> x;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      const bool valid = c * kTokenTile < left_;
      x.codes[c][0] = load_if(codes(group, c), valid);
      x.codes[c][1] = load_if(codes(group, c) + 16, valid);
      x.scales[c] = load_if(scales(group, c), c * kTokenTile < scales_left_);
    }
    return x;
  }

  // By cp.async; the caller commits and waits, and lets the warp meet before load_slot().
  __device__ __forceinline__ void copy(uint32_t slot, int group) const {
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      const int bytes = c * kTokenTile < left_ ? 16 : 0;
      const uint32_t to = slot + c * 1024 + lane_ * 16;
      copy_if(to, codes(group, c), bytes);
      copy_if(to + 512, codes(group, c) + 16, bytes);
      if (lane_ < 4) {
        const uint32_t scales_to = slot + kCodeBytes + c * 32 + lane_ * 8;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(scales_to),
                     "l"(scales(group, c)), "r"(c * kTokenTile < scales_left_ ? 8 : 0)
                     : "memory");
      }
    }
  }

  __device__ __forceinline__ TokenFragment<kTokenTiles> load_slot(uint32_t slot) const {
    TokenFragment<kTokenTiles> x;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      x.codes[c][0] = load_shared_words(slot + c * 1024 + lane_ * 16);
      x.codes[c][1] = load_shared_words(slot + c * 1024 + lane_ * 16 + 512);
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(x.scales[c].x), "=f"(x.scales[c].y)
                   : "r"(slot + kCodeBytes + c * 32 + lane_ % 4 * 8));
    }
    return x;
  }

 private:
  __device__ __forceinline__ const int8_t* codes(int group, int c) const {
    return codes_ + (int64_t{c} * tile_bytes_ + int64_t{group} * kGroupSize);
  }
  // Of an odd m the second is a value between m and the stride, and counts for no token.
  __device__ __forceinline__ const float* scales(int group, int c) const {
    return scales_ + (int64_t{group} * scale_stride_ + c * kTokenTile);
  }

  static __device__ __forceinline__ void copy_if(uint32_t to, const int8_t* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  }

  static __device__ __forceinline__ uint4 load_if(const int8_t* from, bool valid) {
    uint4 v;
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.s32 p, %5, 0;\n"
        " mov.u32 %0, 0;\n mov.u32 %1, 0;\n mov.u32 %2, 0;\n mov.u32 %3, 0;\n"
        " @p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(from), "r"(static_cast<int>(valid)));
    return v;
  }

  static __device__ __forceinline__ float2 load_if(const float* from, bool valid) {
    float2 v;
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.s32 p, %3, 0;\n mov.f32 %0, 0f00000000;\n"
        " mov.f32 %1, 0f00000000;\n @p ld.global.v2.f32 {%0,%1}, [%2];\n}"
        : "=&f"(v.x), "=&f"(v.y)
        : "l"(from), "r"(static_cast<int>(valid)));
    return v;
  }

  int lane_;
  int left_, scales_left_;  // tokens from the lane's first on
  int tile_bytes_, scale_stride_;
  const int8_t* codes_;
  const float* scales_;
};

// Biased group sums (int6.cuh): [c][i] of row g + 8 (i / 2) and token 8c + 2t + i % 2.
template <int kTokenTiles>
__device__ __forceinline__ void multiply_tile(int32_t (&sum)[kTokenTiles][4], const TileWords& w,
                                              const TokenFragment<kTokenTiles>& x) {
  // Of a single token tile every other step adds to a second sum, or each mma would wait for the
  // one before.
  constexpr int kChains = kTokenTiles == 1 ? 2 : 1;
  int32_t partial[kChains][kTokenTiles][4];
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      partial[0][c][i] = kSumBias;
      if constexpr (kChains == 2) partial[1][c][i] = 0;
    }
  }
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    uint32_t a[4];
    unpack_int6(a, w[3 * s], w[3 * s + 1], w[3 * s + 2]);
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      const uint4& b = x.codes[c][s / 2];
      mma_int8(partial[s % kChains][c], a, s % 2 == 0 ? b.x : b.z, s % 2 == 0 ? b.y : b.w);
    }
  }
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[c][i] = partial[0][c][i];
      if constexpr (kChains == 2) sum[c][i] += partial[1][c][i];
    }
  }
}

// y += weight scale * token scale * sum.
template <int kTokenTiles>
__device__ __forceinline__ void add_scaled(float (&y)[kTokenTiles][4],
                                           const int32_t (&sum)[kTokenTiles][4],
                                           const TileScales& w,
                                           const TokenFragment<kTokenTiles>& x) {
  const WeightScale low(__half2float(w.low)), high(__half2float(w.high));
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
    y[c][0] = __fmaf_rn(low.apply(sum[c][0]), x.scales[c].x, y[c][0]);
    y[c][1] = __fmaf_rn(low.apply(sum[c][1]), x.scales[c].y, y[c][1]);
    y[c][2] = __fmaf_rn(high.apply(sum[c][2]), x.scales[c].x, y[c][2]);
    y[c][3] = __fmaf_rn(high.apply(sum[c][3]), x.scales[c].y, y[c][3]);
  }
}

}  // namespace flexq_kernels::gpu
