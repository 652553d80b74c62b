// Prefill attention on Hopper: what a warpgroup computes of its 64 queries of one head, with wgmma
// and an online softmax. Tiles of kWgmmaTile positions start at a multiple of it from position 0,
// and each row is computed alike whatever the other rows are: its bits depend on neither the rows
// beside it nor how its prompt is cut (attention_prefill.cuh).
//
// Scores of the next tile and the values of this one are multiplied while the warpgroup computes
// exponentials: products are begun, and waited for, by whoever calls.
#pragma once

#include "ft/kernels/attention_prefill_tile.cuh"
#include "ft/kernels/wgmma_float.cuh"

namespace flexq_ft::gpu {

constexpr int kWgmmaRows = 64;   // queries of a warpgroup
constexpr int kWgmmaTile = 128;  // positions

template <typename T, int kDim>
struct PrefillWarpgroup {
  static constexpr int kKeys = kWgmmaTile / 8;  // column blocks of the scores
  static constexpr int kColumns = kDim / 8;     // of the output
  // Bytes. Of keys and values eight positions lie panel by panel, as copies of pages write them.
  static constexpr int kQueryPanel = kWgmmaRows * 128;
  static constexpr int kPositions8 = kDim / 64 * 1024;

  float s[kKeys * 4];
  float o[kColumns * 4];
  uint32_t p[kKeys * 2];  // exponentials, rounded: A of the values, four words for 16 positions
  float m[2];             // of rows g and g + 8 of the warp, exponents of 2
  float l[2];             // this lane's columns alone
  float shrink[2];        // from the base of o to that of p

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // First row of the warp in its warpgroup.
  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / 32 % 4 * 16;
  }

  __device__ __forceinline__ void clear() {
    m[0] = m[1] = kMinusInfinity;
    l[0] = l[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < kColumns * 4; ++i) o[i] = 0.0f;
  }

  // Begins s = q kᵀ: 64 queries, a tile of keys.
  __device__ __forceinline__ void begin_scores(uint32_t q, uint32_t k) {
    fence_sums(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const uint64_t within = step % 4 * 2;
      const uint64_t a = panel_descriptor(q + step / 4 * kQueryPanel, 1024) + within;
      const uint64_t b = panel_descriptor(k + step / 4 * 1024, kPositions8) + within;
      if (step == 0) {
        wgmma_scores<false>(s, a, b, T{});
      } else {
        wgmma_scores<true>(s, a, b, T{});
      }
    }
    wgmma_commit();
  }

  // Begins o += p v.
  __device__ __forceinline__ void begin_values(uint32_t v) {
    fence_sums(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kWgmmaTile / 16; ++step) {
      wgmma_values(o, p + 4 * step, panel_descriptor(v + step * 2 * kPositions8, kPositions8), T{});
    }
    wgmma_commit();
  }

  // first: the tile's first position less that of the warpgroup's first row. What a row does not
  // see becomes -inf, whatever it was.
  __device__ __forceinline__ void mask(int first) {
    const int column = first + lane() % 4 * 2 - first_row() - lane() / 4;
#pragma unroll
    for (int n = 0; n < kKeys; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (column + n * 8 + e % 2 - e / 2 * 8 > 0) s[4 * n + e] = kMinusInfinity;
      }
    }
  }

  // Scores become exponentials. The base is subtracted as it is kept, so that an unchanged maximum
  // gives a factor of exactly one.
  __device__ __forceinline__ void softmax(float scale) {
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = kMinusInfinity;
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
        top = fmaxf(top, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
      }
      const float best = fmaxf(m[half], __fmul_rn(quad_max(top), scale));
      base[half] = exponent_base(best);
      shrink[half] = exp2_fast(__fsub_rn(m[half], base[half]));
      m[half] = best;
    }
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < kKeys; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* pair = s + 4 * n + 2 * half;
        pair[0] = exp2_fast(__fmaf_rn(pair[0], scale, -base[half]));
        pair[1] = exp2_fast(__fmaf_rn(pair[1], scale, -base[half]));
        sum[half] += pair[0] + pair[1];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) l[half] = __fmaf_rn(l[half], shrink[half], sum[half]);
  }

  // Brings o to the base of the exponentials, and rounds these: no product of values is under way.
  __device__ __forceinline__ void rebase() {
#pragma unroll
    for (int i = 0; i < kKeys * 2; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1], T{});
#pragma unroll
    for (int i = 0; i < kColumns * 4; ++i) o[i] *= shrink[i / 2 % 2];
  }

  // Values that are not finite, for the rows that see them; a product with zero, of those that do
  // not, would be NaN. marks: a bit for each position that has such values; first: as of mask().
  __device__ __forceinline__ void add_not_finite(const unsigned char* v, const uint32_t* marks,
                                                 int first) {
    const int row = first_row() + lane() / 4 - first;  // sees the tile's positions up to this one
#pragma unroll 1
    for (int word = 0; word < kWgmmaTile / 32; ++word) {
#pragma unroll 1
      for (uint32_t left = marks[word]; left != 0; left &= left - 1) {
        const int position = word * 32 + __ffs(static_cast<int>(left)) - 1;
        uint32_t pair[kColumns];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          pair[n] = *reinterpret_cast<const uint32_t*>(
              v + panel_byte(1024, kPositions8, position, n * 8) + lane() % 4 * 4);
        }
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          const uint32_t bad = not_finite(pair[n], T{});
          const float2 value = unpack2(pair[n], T{});
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (position <= row + e / 2 * 8 && (bad & (e % 2 == 0 ? 0x8000u : 0x80000000u)) != 0) {
              o[4 * n + e] += e % 2 == 0 ? value.x : value.y;
            }
          }
        }
      }
    }
  }

  // The rows, divided by their sums and rounded, to panels of shared memory.
  __device__ __forceinline__ void store_rows(unsigned char* to) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = __fdiv_rn(1.0f, quad_sum(l[half]));
      const int row = first_row() + half * 8 + lane() / 4;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const int i = 4 * n + 2 * half;
        *reinterpret_cast<uint32_t*>(to + panel_byte(kQueryPanel, 1024, row, n * 8) +
                                     lane() % 4 * 4) =
            pack2(o[i] * inverse, o[i + 1] * inverse, T{});
      }
    }
  }
};

}  // namespace flexq_ft::gpu
