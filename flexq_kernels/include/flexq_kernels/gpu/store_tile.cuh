// The end of a GEMM whose accumulators hold [row of the weight][token] and whose result is
// [token][row]: blocks of 64 tokens x 64 rows go through shared memory, so that a token's 64
// outputs leave as whole lines.
//
//   staged  [64 tokens][64 rows, 16 bytes of padding]   the padding spreads what a warp writes (8
//                                                       rows of every second token) over all banks
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/output.cuh"
#include "flexq_kernels/gpu/store_target.h"

namespace flexq_kernels::gpu {

constexpr int kStoreBlock = 64;  // tokens, and rows

template <typename T>
constexpr int kStorePitch = kStoreBlock + 16 / static_cast<int>(sizeof(T));

constexpr int kStoreBytes = kStoreBlock * kStorePitch<float> * 4;  // the widest type's

// Writes a staged block, its first token and row at (token, row) of the result, with so many
// threads. All of the block was written to shared memory, and a barrier passed, before.
template <typename T, int kThreads>
__device__ __forceinline__ void store_block(const T* staged, const StoreTarget& to, int token,
                                            int row, int thread) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kVectors = kStoreBlock / kVector;  // of a token
  const bool whole = to.n % kVector == 0;          // then no vector is split, and all are aligned
#pragma unroll 2
  for (int i = thread; i < kStoreBlock * kVectors; i += kThreads) {
    const int m = token + i / kVectors, in_row = i % kVectors * kVector, n = row + in_row;
    if (m >= to.m || n >= to.n) continue;
    union {
      int4 vector;
      T values[kVector];
    } out, residual;
    out.vector = *reinterpret_cast<const int4*>(staged + i / kVectors * kStorePitch<T> + in_row);
    const int64_t at = static_cast<int64_t>(m) * to.n + n;
    T* const y = static_cast<T*>(to.values) + at;
    const T* const r = static_cast<const T*>(to.residual) + at;
    if (whole) {
      if (to.residual != nullptr) {
        residual.vector = *reinterpret_cast<const int4*>(r);
        for (int e = 0; e < kVector; ++e) {
          out.values[e] = rounded<T>(widened(out.values[e]) + widened(residual.values[e]));
        }
      }
      *reinterpret_cast<int4*>(y) = out.vector;
    } else {
      for (int e = 0; e < kVector && n + e < to.n; ++e) {
        y[e] = to.residual == nullptr ? out.values[e]
                                      : rounded<T>(widened(out.values[e]) + widened(r[e]));
      }
    }
  }
}

}  // namespace flexq_kernels::gpu
