// Prefill attention: a tile of a sequence's queries against all positions they see, with
// mma.m16n8k16 and an online softmax.
//
// A warp has 16 or 32 rows (queries) of one head; keys and values come through shared memory in
// tiles of kTile positions that always start at a multiple of it from position 0. A row's bits
// therefore depend neither on the other rows of its tile nor on how a prompt is cut: tiles beyond
// what a row sees change nothing (the maximum stays, factors are 2^0 = 1, zeros are added).
//
// Rows of shared memory are kDim values and 16 bytes, an odd number of 16-byte words: the eight
// rows of an ldmatrix lie in different banks.
#pragma once

#include "flexq_kernels/gpu/mma.cuh"
#include "ft/kernels/attention_prefill_tile.cuh"

namespace flexq_ft::gpu {

constexpr int kPrefillWarps = 4;
constexpr int kPrefillThreads = kPrefillWarps * 32;

template <int kDim>
struct PrefillShape {
  static constexpr int kTile = kDim > 128 ? 32 : 64;  // positions
  static constexpr int kWords = kDim / 8;             // of 16 bytes, in a row
  static constexpr int kStride = kDim + 8;            // values from row to row
  static constexpr int kPages = kTile / kPageTokens;
  // Queries, two stages of K, two of V. At most 99 KB for 64 queries, which sm_86 and sm_89 have.
  static constexpr size_t shared_bytes(int rows) {
    return static_cast<size_t>(rows + 4 * kTile) * kStride * 2;
  }
};

using flexq_kernels::gpu::load_matrices;
using flexq_kernels::gpu::load_matrices_transposed;

// Begins to copy positions [first, first + kTile) of a KV head of K and of V; zeros from `end` on.
// pages: ids of the tile's pages.
template <typename T, int kDim>
__device__ __forceinline__ void load_prefill_tile(T* k, T* v, const AttentionView<T>& view,
                                                  const int* pages, int kv_head, int first,
                                                  int end) {
  using Shape = PrefillShape<kDim>;
  // A thread keeps its column; its rows are kStep apart, so a page is looked up once.
  if constexpr (kPrefillThreads % Shape::kWords == 0 &&
                kPrefillThreads / Shape::kWords <= kPageTokens) {
    constexpr int kStep = kPrefillThreads / Shape::kWords;  // rows of one round of all threads
    const int row = static_cast<int>(threadIdx.x) / Shape::kWords;
    const int column = static_cast<int>(threadIdx.x) % Shape::kWords * 8;
    const int limit = column < view.head_dim ? end - first : 0;  // rows that are there
    T* const k_to = k + row * Shape::kStride + column;
    T* const v_to = v + row * Shape::kStride + column;
#pragma unroll
    for (int page = 0; page < Shape::kTile / kPageTokens; ++page) {
      const int64_t from = view.page_at(pages[page], kv_head) + row * view.head_dim + column;
#pragma unroll
      for (int i = 0; i < kPageTokens / kStep; ++i) {
        const int at = page * kPageTokens + i * kStep;
        const bool there = at + row < limit;
        const int64_t source = there ? from + i * kStep * view.head_dim : 0;
        copy_async_or_zero<16>(shared_address(k_to + at * Shape::kStride), view.k + source, there);
        copy_async_or_zero<16>(shared_address(v_to + at * Shape::kStride), view.v + source, there);
      }
    }
  } else {
#pragma unroll 2  // all at once would take registers that the tile needs
    for (int i = 0; i < Shape::kTile * Shape::kWords / kPrefillThreads; ++i) {
      const int at = i * kPrefillThreads + static_cast<int>(threadIdx.x);
      const int row = at / Shape::kWords;
      const int column = at % Shape::kWords * 8;
      const bool there = first + row < end && column < view.head_dim;
      int64_t from = 0;
      if (there) {
        from = view.page_at(pages[row / kPageTokens], kv_head) + row % kPageTokens * view.head_dim +
               column;
      }
      copy_async_or_zero<16>(shared_address(k + row * Shape::kStride + column), view.k + from,
                             there);
      copy_async_or_zero<16>(shared_address(v + row * Shape::kStride + column), view.v + from,
                             there);
    }
  }
}

// Rows of one head in a warp: kBlocks times 16.
template <typename T, int kDim, int kBlocks>
struct PrefillWarp {
  using Shape = PrefillShape<kDim>;
  static constexpr int kKeys = Shape::kTile / 8;  // column blocks of the scores
  static constexpr int kColumns = kDim / 8;       // of the output

  float o[kBlocks][kColumns][4];
  float s[kBlocks][kKeys][4];
  float m[kBlocks][2];  // of rows g and g + 8, exponents of 2
  float l[kBlocks][2];  // this lane's columns alone

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // First row of the warp in its block's tile.
  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / 32 * kBlocks * 16;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      m[b][0] = m[b][1] = kMinusInfinity;
      l[b][0] = l[b][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) o[b][n][0] = o[b][n][1] = o[b][n][2] = o[b][n][3] = 0.0f;
    }
  }

  // s = q kᵀ. q: the tile's queries, k: a tile of keys, both in shared memory.
  __device__ __forceinline__ void scores(const T* q, const T* k) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int n = 0; n < kKeys; ++n) s[b][n][0] = s[b][n][1] = s[b][n][2] = s[b][n][3] = 0.0f;
    }
    // Matrices of A: rows 0-7, rows 8-15, then the same of the next eight columns.
    const uint32_t a_at =
        shared_address(q + (first_row() + lane() % 16) * Shape::kStride + lane() / 16 * 8);
    // Of B: positions 0-7, the same of the next eight columns, then positions 8-15.
    const uint32_t b_at =
        shared_address(k + (lane() % 8 + lane() / 16 * 8) * Shape::kStride + lane() / 8 % 2 * 8);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[kBlocks][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        load_matrices(a[b], a_at + (b * 16 * Shape::kStride + step * 16) * 2);
      }
#pragma unroll
      for (int n = 0; n < kKeys / 2; ++n) {
        uint32_t keys[4];
        load_matrices(keys, b_at + (n * 16 * Shape::kStride + step * 16) * 2);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          mma_16816(s[b][2 * n], a[b][0], a[b][1], a[b][2], a[b][3], keys[0], keys[1], T{});
          mma_16816(s[b][2 * n + 1], a[b][0], a[b][1], a[b][2], a[b][3], keys[2], keys[3], T{});
        }
      }
    }
  }

  // first: the tile's first position less that of the warp's first row. What a row does not see
  // becomes -inf, whatever it was.
  __device__ __forceinline__ void mask(int first) {
    const int column = first + lane() % 4 * 2 - lane() / 4;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int ahead = column + n * 8 + e % 2 - (b * 16 + e / 2 * 8);
          if (ahead > 0) s[b][n][e] = kMinusInfinity;
        }
      }
    }
  }

  // Scores become exponentials, and what was summed so far is brought to their base. The base is
  // subtracted as it is kept, so that an unchanged maximum gives a factor of exactly one.
  __device__ __forceinline__ void softmax(float scale) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = kMinusInfinity;
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
          top = fmaxf(top, fmaxf(s[b][n][2 * half], s[b][n][2 * half + 1]));
        }
        const float best = fmaxf(m[b][half], __fmul_rn(quad_max(top), scale));
        const float base = exponent_base(best);
        const float shrink = exp2_fast(__fsub_rn(m[b][half], base));
        m[b][half] = best;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[b][n][e] = exp2_fast(__fmaf_rn(s[b][n][e], scale, -base));
            sum += s[b][n][e];
          }
        }
        l[b][half] = __fmaf_rn(l[b][half], shrink, sum);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          o[b][n][2 * half] *= shrink;
          o[b][n][2 * half + 1] *= shrink;
        }
      }
    }
  }

  // o += p v. v: a tile of values in shared memory.
  __device__ __forceinline__ void add_values(const T* v) {
    // Matrices, transposed: positions 0-7, positions 8-15, then the same of the next eight columns.
    const uint32_t at = shared_address(v + lane() % 16 * Shape::kStride + lane() / 16 * 8);
#pragma unroll
    for (int step = 0; step < Shape::kTile / 16; ++step) {
      uint32_t a[kBlocks][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &s[b][2 * step + i / 2][i % 2 * 2];
          a[b][i] = pack2(pair[0], pair[1], T{});
        }
      }
#pragma unroll
      for (int n = 0; n < kColumns / 2; ++n) {
        uint32_t values[4];
        load_matrices_transposed(values, at + (step * 16 * Shape::kStride + n * 16) * 2);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          mma_16816(o[b][2 * n], a[b][0], a[b][1], a[b][2], a[b][3], values[0], values[1], T{});
          mma_16816(o[b][2 * n + 1], a[b][0], a[b][1], a[b][2], a[b][3], values[2], values[3], T{});
        }
      }
    }
  }

  // Values that are not finite, for the rows that see them; a product with zero, of those that do
  // not, would be NaN. first: as of mask().
  __device__ __forceinline__ void add_not_finite(const T* v, int first) {
#pragma unroll 1
    for (int position = 0; position < Shape::kTile; ++position) {
      const T* row = v + position * Shape::kStride + lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(row + n * 8);
        const uint32_t bad = not_finite(pair, T{});
        if (bad == 0) continue;
        const float2 value = unpack2(pair, T{});
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool seen = first + position <= b * 16 + lane() / 4 + e / 2 * 8;
            if (seen && (bad & (e % 2 == 0 ? 0x8000u : 0x80000000u)) != 0) {
              o[b][n][e] += e % 2 == 0 ? value.x : value.y;
            }
          }
        }
      }
    }
  }

  // The rows, divided by their sums and rounded, to shared memory.
  __device__ __forceinline__ void store_rows(T* to) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float inverse = __fdiv_rn(1.0f, quad_sum(l[b][half]));
        T* row = to + (first_row() + b * 16 + half * 8 + lane() / 4) * Shape::kStride;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          *reinterpret_cast<uint32_t*>(row + n * 8 + lane() % 4 * 2) =
              pack2(o[b][n][2 * half] * inverse, o[b][n][2 * half + 1] * inverse, T{});
        }
      }
    }
  }
};

// Does a tile of values hold one that is not finite? Every thread of the block must call it.
template <typename T, int kDim>
__device__ __forceinline__ bool any_not_finite(const T* v) {
  using Shape = PrefillShape<kDim>;
  uint32_t bad = 0;
#pragma unroll
  for (int i = 0; i < Shape::kTile * Shape::kWords / kPrefillThreads; ++i) {
    const int at = i * kPrefillThreads + static_cast<int>(threadIdx.x);
    const uint4 x = *reinterpret_cast<const uint4*>(v + at / Shape::kWords * Shape::kStride +
                                                    at % Shape::kWords * 8);
    bad |=
        not_finite(x.x, T{}) | not_finite(x.y, T{}) | not_finite(x.z, T{}) | not_finite(x.w, T{});
  }
  return __syncthreads_or(bad != 0) != 0;
}

// Zeros in the place of values that are not finite.
template <typename T, int kDim>
__device__ __forceinline__ void clear_not_finite(T* v) {
  using Shape = PrefillShape<kDim>;
  for (int at = static_cast<int>(threadIdx.x); at < Shape::kTile * kDim / 2;
       at += kPrefillThreads) {
    uint32_t* pair =
        reinterpret_cast<uint32_t*>(v + at / (kDim / 2) * Shape::kStride) + at % (kDim / 2);
    const uint32_t bad = not_finite(*pair, T{});
    if ((bad & 0x8000u) != 0) *pair &= 0xffff0000u;
    if ((bad & 0x80000000u) != 0) *pair &= 0x0000ffffu;
  }
}

}  // namespace flexq_ft::gpu
