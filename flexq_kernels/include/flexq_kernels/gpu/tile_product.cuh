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
#include "flexq_kernels/gpu/mma.cuh"

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

__device__ __forceinline__ float2 load_shared_pair(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from));
  return v;
}

__device__ __forceinline__ void load_shared_floats(float (&v)[4], uint32_t from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ void store_shared_floats(uint32_t to, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(v[0]), "f"(v[1]),
               "f"(v[2]), "f"(v[3])
               : "memory");
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

// Reads a lane's fragments of x, group by group. Of tokens past m it reads the last one's, and what
// becomes of them is not stored.
//
// Ordinary loads: the kernel in front may have written x while this one ran, so it is not data that
// the read-only path may keep.
template <int kTokenTiles>
class TokenReader {
 public:
  __device__ __forceinline__ TokenReader(const Activations& x, int m, int groups, int first_group,
                                         int lane)
      : codes_(x.codes), scales_(x.scales), scale_step_(static_cast<int>(x.scale_stride)) {
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      codes_at_[c] = (min(c * kTokenTile + lane / 4, m - 1) * groups + first_group) * kGroupSize +
                     lane % 4 * 32;
      // Of an odd m the second is a value between m and the stride.
      scales_at_[c] =
          min(c * kTokenTile + lane % 4 * 2, (m - 1) / 2 * 2) + first_group * scale_step_;
    }
  }

  __device__ __forceinline__ TokenFragment<kTokenTiles> load() const {
    TokenFragment<kTokenTiles> x;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      x.codes[c][0] = load_words(codes_ + codes_at_[c]);
      x.codes[c][1] = load_words(codes_ + codes_at_[c] + 16);
      x.scales[c] = load_pair(scales_ + scales_at_[c]);
    }
    return x;
  }

  // To the next group, if there is one.
  __device__ __forceinline__ void advance(bool more) {
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      codes_at_[c] += more ? kGroupSize : 0;
      scales_at_[c] += more ? scale_step_ : 0;
    }
  }

 private:
  static __device__ __forceinline__ uint4 load_words(const int8_t* from) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
  }

  static __device__ __forceinline__ float2 load_pair(const float* from) {
    float2 v;
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(from));
    return v;
  }

  const int8_t* codes_;
  const float* scales_;
  int scale_step_;
  uint32_t codes_at_[kTokenTiles], scales_at_[kTokenTiles];  // of the lane's tokens
};

// d = start + a * b (mma_int8): the first step of a sum, whose start costs no instruction.
__device__ __forceinline__ void first_mma_int8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1, int32_t start) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
}

// Biased group sums (int6.cuh): [c][i] of row g + 8 (i / 2) and token 8c + 2t + i % 2.
template <int kTokenTiles>
__device__ __forceinline__ void multiply_tile(int32_t (&sum)[kTokenTiles][4], const TileWords& w,
                                              const TokenFragment<kTokenTiles>& x) {
  // Of a single token tile every other step adds to a second sum, or each mma would wait for the
  // one before.
  constexpr int kParts = kTokenTiles == 1 ? 2 : 1;
  constexpr int32_t kStart = kParts == 2 ? 0 : kSumBias;
  int32_t part[kParts][kTokenTiles][4];
#pragma unroll
  for (int s = 0; s < kStepsPerGroup; ++s) {
    uint32_t a[4];
    unpack_int6(a, w[3 * s], w[3 * s + 1], w[3 * s + 2]);
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      const uint4& b = x.codes[c][s / 2];
      const uint32_t b0 = s % 2 == 0 ? b.x : b.z, b1 = s % 2 == 0 ? b.y : b.w;
      if (s < kParts) {
        first_mma_int8(part[s][c], a, b0, b1, kStart);
      } else {
        mma_int8(part[s % kParts][c], a, b0, b1);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[c][i] = part[0][c][i];
      if constexpr (kParts == 2) sum[c][i] += part[1][c][i] + kSumBias;
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
