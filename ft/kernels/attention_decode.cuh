// Decode attention: the one token of a sequence against all positions of its pages, cut into parts
// that different blocks take; a second kernel combines the parts.
//
// Memory decides, so a warp takes a page (16 positions) at a time straight from global memory into
// the fragments of mma.m16n8k16; up to eight query heads of the KV head are its rows 0 … 7. Nothing
// is shared but at the end. To load 16 bytes per lane the order inside the products is permuted:
//   scores: lane (g, t) reads K[position 8b + g][32j + 8t … + 7], the B fragments of k-steps 2j and
//           2j + 1; it reads Q[head g] at the same columns as A, so that every product is paired.
//   values: lane (g, t) reads V[position 2t, 2t+1, 2t+8, 2t+9][64c + 8g … + 7]; two positions are
//           interleaved into the B fragments of eight column blocks: column g of block (c, j) is
//           dimension 64c + 8g + j. A lane ends up with sixteen neighbouring dimensions of head g.
// Probabilities keep (nearly) fp32 precision: rows 0 … 7 of A hold them rounded, rows 8 … 15 what
// the rounding left, and the two halves of C are added at the end.
#pragma once

#include "ft/kernels/attention_common.cuh"

namespace flexq_ft::gpu {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * 32;
constexpr int kDecodeHeads = 8;  // query heads of a block
constexpr int kMaxDecodeParts = 32;
constexpr int kDecodeChunk = 64;  // least positions of a part: a page per warp

// Positions of a part, a multiple of 16, of a sequence with so many: of its length alone, so that a
// row's bits do not depend on its batch. 16 parts up to 4096 positions: enough blocks for one
// sequence of a model with many KV heads, and little to combine; then as many as it takes to keep
// parts of 256, 32 at most.
__host__ __device__ __forceinline__ int decode_chunk(int length) {
  const int sixteenth = (length + 15) / 16;
  const int least = (length + kMaxDecodeParts - 1) / kMaxDecodeParts;
  int chunk = sixteenth < 256 ? sixteenth : 256;
  chunk = chunk > least ? chunk : least;
  chunk = chunk > kDecodeChunk ? chunk : kDecodeChunk;
  return (chunk + kPageTokens - 1) / kPageTokens * kPageTokens;
}
__host__ __device__ __forceinline__ int decode_parts(int length) {
  const int chunk = decode_chunk(length);
  return (length + chunk - 1) / chunk;
}
// Most parts of a sequence of up to so many positions.
constexpr int most_decode_parts(int64_t positions) {
  if (positions > 4096) return kMaxDecodeParts;
  const int64_t parts = (positions + kDecodeChunk - 1) / kDecodeChunk;
  return static_cast<int>(parts < 1 ? 1 : parts < 16 ? parts : 16);
}

// Workspace of decode: what each part gives, before the division by the sum.
struct DecodeParts {
  float* values;  // [tokens][heads][kMaxDecodeParts][head_dim]
  float2* sums;   // [tokens][heads][kMaxDecodeParts]: maximum (an exponent of 2), sum

  static size_t bytes(int64_t tokens, int64_t heads, int64_t head_dim) {
    const int64_t floats = tokens * heads * kMaxDecodeParts * (head_dim + 2);
    return static_cast<size_t>(floats) * sizeof(float);
  }
  DecodeParts(void* workspace, int64_t tokens, int64_t heads, int64_t head_dim)
      : values(static_cast<float*>(workspace)),
        sums(reinterpret_cast<float2*>(values + tokens * heads * kMaxDecodeParts * head_dim)) {}
};

// Plain loads: rope_append may still run when this kernel starts, so never ld.global.nc.
__device__ __forceinline__ uint4 load_once(const void* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

__device__ __forceinline__ uint4 zero_word() { return make_uint4(0, 0, 0, 0); }

// What a warp has of up to eight query heads; kDim is head_dim rounded up to 64, 128 or 256.
template <typename T, int kDim>
struct DecodeWarp {
  static constexpr int kSteps = kDim / 32;   // 16-byte words of a K row per lane
  static constexpr int kBlocks = kDim / 64;  // of V
  // Are there registers for the next page while this one is worked on? If not, half a page's K is
  // held at a time.
  static constexpr bool kAhead = kDim <= 128;
  static constexpr int kHeld = kAhead ? kSteps : kSteps / 2;

  uint4 q[kSteps];
  uint4 k[2][kHeld];
  uint4 v[4][kBlocks];  // positions 2t, 2t+1, 2t+8, 2t+9
  float o[kBlocks * 8][4];
  float m;  // of head g, an exponent of 2
  float l;  // of head g, this lane's positions alone

  static __device__ __forceinline__ int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
  static __device__ __forceinline__ int t() { return static_cast<int>(threadIdx.x) % 4; }

  // row: of the query heads' first; `heads` of them.
  __device__ __forceinline__ void load_q(const T* row, int heads, int head_dim) {
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int column = 32 * j + 8 * t();
      const bool there = g() < heads && column < head_dim;
      q[j] = there ? load_once(row + g() * head_dim + column) : zero_word();
    }
  }

  // `count` positions of the page are seen; the others are not even read.
  __device__ __forceinline__ void load_k(const T* page, int count, int head_dim, int step = 0) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int position = 8 * b + g();
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int column = 32 * (step + j) + 8 * t();
        const bool there = position < count && column < head_dim;
        k[b][j] = there ? load_once(page + position * head_dim + column) : zero_word();
      }
    }
  }

  __device__ __forceinline__ void load_v(const T* page, int count, int head_dim) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = 2 * t() + i % 2 + i / 2 * 8;
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        const int column = 64 * c + 8 * g();
        const bool there = position < count && column < head_dim;
        v[i][c] = there ? load_once(page + position * head_dim + column) : zero_word();
      }
    }
  }

  __device__ __forceinline__ void clear() {
    m = kMinusInfinity;
    l = 0.0f;
#pragma unroll
    for (int i = 0; i < kBlocks * 8; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
  }

  // Adds the products of the steps that k holds. c[b][0, 1]: of head g at positions 8b + 2t + 0, 1.
  __device__ __forceinline__ void add_scores(float (&c)[2][4], int step = 0) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const uint4& a = q[step + j];
        mma_16816(c[b], a.x, 0, a.y, 0, k[b][j].x, k[b][j].y, T{});
        mma_16816(c[b], a.z, 0, a.w, 0, k[b][j].z, k[b][j].w, T{});
      }
    }
  }

  // Scores become exponentials, and what was summed so far is brought to their base.
  // s: of head g at positions 2t, 2t+1, 2t+8, 2t+9.
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
#pragma unroll
    for (int i = 0; i < kBlocks * 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[i][e] *= shrink;
    }
  }

  __device__ __forceinline__ void add_values(const float (&p)[4]) {
    const uint32_t a0 = pack2(p[0], p[1], T{});
    const uint32_t a2 = pack2(p[2], p[3], T{});
    const float2 r0 = unpack2(a0, T{});
    const float2 r2 = unpack2(a2, T{});
    const uint32_t a1 = pack2(p[0] - r0.x, p[1] - r0.y, T{});
    const uint32_t a3 = pack2(p[2] - r2.x, p[3] - r2.y, T{});
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const auto word = [w](const uint4& x) {
          return w == 0 ? x.x : w == 1 ? x.y : w == 2 ? x.z : x.w;
        };
        const uint32_t e0 = word(v[0][c]), e1 = word(v[1][c]);
        const uint32_t e2 = word(v[2][c]), e3 = word(v[3][c]);
        mma_16816(o[c * 8 + 2 * w], a0, a1, a2, a3, __byte_perm(e0, e1, 0x5410),
                  __byte_perm(e2, e3, 0x5410), T{});
        mma_16816(o[c * 8 + 2 * w + 1], a0, a1, a2, a3, __byte_perm(e0, e1, 0x7632),
                  __byte_perm(e2, e3, 0x7632), T{});
      }
    }
  }
};

// What the warps of a block leave for each other.
template <int kDim>
struct DecodeShared {
  static constexpr int kRow = kDim + 4;  // a lane's four words of rows g, g + 1 … in other banks
  float values[kDecodeWarps][kDecodeHeads][kRow];
  float m[kDecodeWarps][kDecodeHeads];
  float l[kDecodeWarps][kDecodeHeads];
};

// A warp's share of a part: pages first + warp, + 4, … below `end`, of `length` positions in all.
// `page` is the id of the warp's first page.
template <typename T, int kDim>
__device__ __forceinline__ void decode_pages(DecodeWarp<T, kDim>& warp,
                                             const AttentionView<T>& view, const int32_t* table,
                                             int kv_head, int first, int end, int page,
                                             int length) {
  constexpr bool kAhead = DecodeWarp<T, kDim>::kAhead;
  int index = first + static_cast<int>(threadIdx.x) / 32;
  warp.clear();
  if (index >= end) return;
  const auto load_k = [&](int at, int step) {
    const T* from = view.k + view.page_at(page, kv_head);
    warp.load_k(from, length - at * kPageTokens, view.head_dim, step);
  };
  const auto load_v = [&](int at) {
    warp.load_v(view.v + view.page_at(page, kv_head), length - at * kPageTokens, view.head_dim);
  };
  load_k(index, 0);
  if (kAhead) load_v(index);
  while (true) {
    const int count = length - index * kPageTokens;
    const int next = index + kDecodeWarps;
    const bool more = next < end;
    float c[2][4] = {};
    warp.add_scores(c);
    if (!kAhead) {
      load_k(index, warp.kHeld);
      warp.add_scores(c, warp.kHeld % warp.kSteps);
      load_v(index);
    }
    if (more) page = table[next];
    if (kAhead && more) load_k(next, 0);
    float s[4] = {c[0][0], c[0][1], c[1][0], c[1][1]};
    warp.softmax(s, count, view.scale);
    warp.add_values(s);
    if (!more) return;
    if (kAhead) {
      load_v(next);
    } else {
      load_k(next, 0);
    }
    index = next;
  }
}

// Sums the warps' results in their order: part `part` of a token's query heads from `head` on.
template <typename T, int kDim>
__device__ __forceinline__ void decode_store_part(const DecodeWarp<T, kDim>& warp,
                                                  DecodeShared<kDim>& shared,
                                                  const AttentionView<T>& view, DecodeParts parts,
                                                  int64_t row, int heads, int part) {
  const int w = static_cast<int>(threadIdx.x) / 32;
  const int g = warp.g(), t = warp.t();
  const float l = quad_sum(warp.l);
  if (g < heads) {
    if (t == 0) {
      shared.m[w][g] = warp.m;
      shared.l[w][g] = l;
    }
#pragma unroll
    for (int c = 0; c < kDim / 64; ++c) {
      float* to = &shared.values[w][g][64 * c + 16 * t];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        to[j] = warp.o[c * 8 + j][0] + warp.o[c * 8 + j][2];
        to[8 + j] = warp.o[c * 8 + j][1] + warp.o[c * 8 + j][3];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < heads * view.head_dim; i += kDecodeThreads) {
    const int h = i / view.head_dim;
    const int d = i % view.head_dim;
    float best = kMinusInfinity;
#pragma unroll
    for (int j = 0; j < kDecodeWarps; ++j) best = fmaxf(best, shared.m[j][h]);
    const float base = exponent_base(best);
    float sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int j = 0; j < kDecodeWarps; ++j) {
      const float weight = exp2_fast(shared.m[j][h] - base);
      sum += weight * shared.l[j][h];
      value += weight * shared.values[j][h][d];
    }
    const int64_t at = (row + h) * kMaxDecodeParts + part;
    parts.values[at * view.head_dim + d] = value;
    if (d == 0) parts.sums[at] = make_float2(best, sum);
  }
}

}  // namespace flexq_ft::gpu
