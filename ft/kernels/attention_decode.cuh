// Decode attention: the one token of a sequence against all positions of its pages, cut into parts
// that different warps take; a second kernel combines the parts.
//
// Memory decides, so a warp copies pages (16 positions of a KV head) ahead of what it works on, K
// and V in turn, whole lines at a time, through a ring in shared memory that is its own: no warp
// waits for another. A page is multiplied by mma.m16n8k16; up to eight query heads of the KV head
// are rows 0 … 7. To read 16 bytes at a time the order inside the products is permuted:
//   scores: lane (g, t) reads K[position 8b + g][32j + 8t … + 7], the B fragments of k-steps 2j and
//           2j + 1; it has Q[head g] at the same columns as A, so that every product is paired.
//   values: lane (g, t) reads V[position 2t, 2t+1, 2t+8, 2t+9][64c + 8g … + 7]; two positions are
//           interleaved into the B fragments of eight column blocks: column g of block (c, j) is
//           dimension 64c + 8g + j. A lane ends up with sixteen neighbouring dimensions of head g.
// Probabilities keep (nearly) fp32 precision: rows 0 … 7 of A hold them rounded, rows 8 … 15 what
// the rounding left, and the two halves of C are added at the end.
#pragma once

#include <algorithm>

#include "ft/kernels/attention.h"
#include "ft/kernels/attention_common.cuh"
#include "ft/kernels/attention_decode_ring.cuh"
#include "ft/kernels/decode_task.h"

namespace flexq_ft::gpu {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * 32;

// Workspace of decode: what each part gives, before the division by the sum.
struct DecodeParts {
  float* values;  // [tokens][heads][most][head_dim]
  float2* sums;   // [tokens][heads][most]: maximum (an exponent of 2), sum
  int limit;      // decode_part_limit()
  int most;       // parts of a sequence

  // limit: at most.
  DecodeParts(void* workspace, const AttentionSizes& sizes, int limit)
      : values(static_cast<float*>(workspace)),
        sums(reinterpret_cast<float2*>(values + rows(sizes) * sizes.head_dim)),
        limit(std::min(limit, limit_of(sizes))),
        most(most_parts(sizes, this->limit)) {}

  static size_t bytes(const AttentionSizes& sizes) {
    return static_cast<size_t>(rows(sizes) * (sizes.head_dim + 2)) * sizeof(float);
  }

 private:
  static int limit_of(const AttentionSizes& sizes) {
    return decode_part_limit(
        head_blocks_of(static_cast<int>(sizes.heads), static_cast<int>(sizes.kv_heads)));
  }
  static int most_parts(const AttentionSizes& sizes, int limit) {
    const int64_t pages = (sizes.positions + kPageTokens - 1) / kPageTokens;
    return most_decode_parts(pages * kPageTokens, limit);
  }
  static int64_t rows(const AttentionSizes& sizes) {
    return sizes.tokens * sizes.heads * most_parts(sizes, limit_of(sizes));
  }
};

__device__ __forceinline__ uint4 load_once(const void* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

// What a warp has of up to eight query heads; kDim is head_dim rounded up to 64, 128 or 256.
template <typename T, int kDim>
struct DecodeWarp {
  using Ring = DecodeRing<kDim>;
  static constexpr int kSteps = kDim / 32;   // 16-byte words of a K row per lane
  static constexpr int kBlocks = kDim / 64;  // of V

  uint4 q[kSteps];
  float o[kBlocks * 8][4];
  float m;  // of head g, an exponent of 2
  float l;  // of head g, this lane's positions alone

  static __device__ __forceinline__ int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
  static __device__ __forceinline__ int t() { return static_cast<int>(threadIdx.x) % 4; }

  // row: of the query heads' first; `heads` of them. Plain loads: what wrote the queries may still
  // run when this kernel starts, so never ld.global.nc.
  static __device__ __forceinline__ void load_q(uint4 (&q)[kSteps], const T* row, int heads,
                                                int head_dim) {
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int column = 32 * j + 8 * t();
      q[j] = make_uint4(0, 0, 0, 0);
      if (g() < heads && column < head_dim) q[j] = load_once(row + g() * head_dim + column);
    }
  }

  __device__ __forceinline__ void clear() {
    m = kMinusInfinity;
    l = 0.0f;
#pragma unroll
    for (int i = 0; i < kBlocks * 8; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
  }

  // s: of head g at positions 2t, 2t+1, 2t+8, 2t+9 of the page whose K the ring is at.
  __device__ __forceinline__ void scores(float (&s)[4], const Ring& ring) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      float even[4] = {}, odd[4] = {};  // two sums: a product need not wait for the last one
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const uint4 k = ring.k(b, j);
        mma_16816(even, q[j].x, 0, q[j].y, 0, k.x, k.y, T{});
        mma_16816(odd, q[j].z, 0, q[j].w, 0, k.z, k.w, T{});
      }
      s[2 * b] = even[0] + odd[0];
      s[2 * b + 1] = even[1] + odd[1];
    }
  }

  // Scores become exponentials, and what was summed so far is brought to their base.
  __device__ __forceinline__ void softmax(float (&s)[4], int count, float scale) {
    float top = kMinusInfinity;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = 2 * t() + i % 2 + i / 2 * 8 < count;
      s[i] = seen ? s[i] * scale : kMinusInfinity;
      top = fmaxf(top, s[i]);
    }
    const float best = fmaxf(m, quad_max(top));
    const float base = exponent_base(best);
    const float shrink = exp2_fast(m - base);
    m = best;
    l *= shrink;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = exp2_fast(s[i] - base);
      l += s[i];
    }
    // Rows g and g + 8 are of the same head.
    if (__all_sync(~0u, shrink == 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kBlocks * 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[i][e] *= shrink;
    }
  }

  // p: of scores(); V of the same page is where the ring is.
  __device__ __forceinline__ void add_values(const float (&p)[4], const Ring& ring) {
    const uint32_t a0 = pack2(p[0], p[1], T{});
    const uint32_t a2 = pack2(p[2], p[3], T{});
    const float2 r0 = unpack2(a0, T{});
    const float2 r2 = unpack2(a2, T{});
    const uint32_t a1 = pack2(p[0] - r0.x, p[1] - r0.y, T{});
    const uint32_t a3 = pack2(p[2] - r2.x, p[3] - r2.y, T{});
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      uint4 v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = ring.v(i, c);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const auto word = [w](const uint4& x) {
          return w == 0 ? x.x : w == 1 ? x.y : w == 2 ? x.z : x.w;
        };
        const uint32_t e0 = word(v[0]), e1 = word(v[1]), e2 = word(v[2]), e3 = word(v[3]);
        mma_16816(o[c * 8 + 2 * w], a0, a1, a2, a3, __byte_perm(e0, e1, 0x5410),
                  __byte_perm(e2, e3, 0x5410), T{});
        mma_16816(o[c * 8 + 2 * w + 1], a0, a1, a2, a3, __byte_perm(e0, e1, 0x7632),
                  __byte_perm(e2, e3, 0x7632), T{});
      }
    }
  }

  // Part `part` of the query heads of rows `row` on, before the division by the sum.
  __device__ __forceinline__ void store(const DecodeParts& parts, int64_t row, int heads, int part,
                                        int head_dim) const {
    const float sum = quad_sum(l);
    if (g() >= heads) return;
    const int64_t at = (row + g()) * parts.most + part;
    if (t() == 0) parts.sums[at] = make_float2(m, sum);
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // dimensions 64c + 16t + 4i … + 3
        const int column = 64 * c + 16 * t() + 4 * i, j = c * 8 + i % 2 * 4, e = i / 2;
        if (column >= head_dim) continue;
        *reinterpret_cast<float4*>(parts.values + at * head_dim + column) =
            make_float4(o[j][e] + o[j][e + 2], o[j + 1][e] + o[j + 1][e + 2],
                        o[j + 2][e] + o[j + 2][e + 2], o[j + 3][e] + o[j + 3][e + 2]);
      }
    }
  }
};

}  // namespace flexq_ft::gpu
