// Tokens of 16-bit floats as B operands: where a lane reads them, and their product with a tile.
//
// What lane 4g + t has of a tile's step s (int6.cuh) lies at k = 32s + 4t … + 3, and 16 further. Of
// token g it reads the same k, 8 bytes each, in natural order; bytes 0, 1 of a register of codes
// meet the first two values, bytes 2, 3 the others:
//
//   x[token g]   | t=0 | t=1 | t=2 | t=3 | t=0 | t=1 | t=2 | t=3 |   32 k of step s
//                  R0, R1 of lane t        R2, R3 of lane t
//
// A mma takes any order of k, as long as it is that of A and B.
#pragma once

#include "flexq_kernels/gpu/tile_product.cuh"
#include "flexq_kernels/gpu/weight_only_gemm_values.cuh"

namespace flexq_kernels::gpu {

// Of `kSteps` steps of 8 * kTokenTiles tokens.
template <int kTokenTiles, int kSteps>
struct TokenPart {
  uint2 values[kTokenTiles][kSteps][2];
};

// Reads a lane's values of x part by part. Of tokens past m it reads the last one's, and what
// becomes of them is not stored; past k there are zeros.
//   kQuads   k is a multiple of 4: four values are inside or outside of a row as a whole, on an
//            8-byte boundary; otherwise they are read one by one
//
// Ordinary loads: the kernel in front may have written x while this one ran, so it is not data that
// the read-only path may keep.
template <int kTokenTiles, int kSteps, bool kQuads>
class TokenPartReader {
 public:
  __device__ __forceinline__ TokenPartReader(const void* x, int m, int k, int first_group, int lane)
      : x_(static_cast<const uint16_t*>(x)), k_(k), at_(first_group * kGroupSize + lane % 4 * 4) {
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) row_[c] = min(c * kTokenTile + lane / 4, m - 1) * k;
  }

  __device__ __forceinline__ TokenPart<kTokenTiles, kSteps> load() const {
    TokenPart<kTokenTiles, kSteps> x;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      const uint16_t* from = x_ + (row_[c] + static_cast<uint32_t>(at_));
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        const int left = k_ - at_ - 16 * i;
        x.values[c][i / 2][i % 2] =
            kQuads ? load_quad(from + 16 * i, left > 0) : load_each(from + 16 * i, left);
      }
    }
    return x;
  }

  __device__ __forceinline__ void advance() { at_ += 32 * kSteps; }

 private:
  static __device__ __forceinline__ uint2 load_quad(const uint16_t* from, bool inside) {
    uint2 v;
    asm volatile(
        "{ .reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0;\n"
        "  @p ld.global.v2.u32 {%0, %1}, [%2]; }"
        : "=&r"(v.x), "=&r"(v.y)
        : "l"(from), "r"(static_cast<uint32_t>(inside)));
    return v;
  }

  // The first `left` of four.
  static __device__ __forceinline__ uint2 load_each(const uint16_t* from, int left) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = i < left ? from[i] : 0u;
    return {v[0] | v[1] << 16, v[2] | v[3] << 16};
  }

  const uint16_t* x_;
  int k_, at_;  // at_: the lane's first k of the part
  uint32_t row_[kTokenTiles];
};

// sum += the part of a tile that begins with step `first_step`, known at compile time, times x.
// [c][i] of row g + 8 (i / 2) and token 8c + 2t + i % 2.
template <typename T, int kTokenTiles, int kSteps>
__device__ __forceinline__ void multiply_part(float (&sum)[kTokenTiles][4], const TileWords& w,
                                              int first_step,
                                              const TokenPart<kTokenTiles, kSteps>& x) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int s = first_step + i;
    uint32_t codes[4];
    unpack_int6(codes, w[3 * s], w[3 * s + 1], w[3 * s + 2]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t a[4];
      CodeValues<T>::widen(a[0], a[2], codes[2 * h]);
      CodeValues<T>::widen(a[1], a[3], codes[2 * h + 1]);
#pragma unroll
      for (int c = 0; c < kTokenTiles; ++c) CodeValues<T>::mma(sum[c], a, x.values[c][i][h]);
    }
  }
}

// y += scale * sum.
template <int kTokenTiles>
__device__ __forceinline__ void add_scaled_floats(float (&y)[kTokenTiles][4],
                                                  const float (&sum)[kTokenTiles][4],
                                                  const TileScales& scales) {
  const float scale[2] = {__half2float(scales.low), __half2float(scales.high)};
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) y[c][i] = __fmaf_rn(scale[i / 2], sum[c][i], y[c][i]);
  }
}

}  // namespace flexq_kernels::gpu
