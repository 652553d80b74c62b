// The end of a tile of the wgmma kernel: a warp's 16 rows x 64 tokens at a time go through shared
// memory of its own, so that a token's 16 outputs leave as whole sectors and no warp waits for
// another.
//
//   staged   [64 or 32 tokens][16 rows, 16 bytes of padding]   the padding spreads eight tokens
//                                                              over all banks
#pragma once

#include "flexq_kernels/gpu/activation.cuh"
#include "flexq_kernels/gpu/store_tile.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

constexpr int kStagingBytes = 64 * (kTileRows * 2 + 16);  // of a warp

template <typename T>
constexpr int kStagedTokens = sizeof(T) == 4 ? 32 : 64;  // at a time
template <typename T>
constexpr int kStagingPitch = kTileRows * static_cast<int>(sizeof(T)) + 16;  // bytes
static_assert(kStagedTokens<float> * kStagingPitch<float> <= kStagingBytes);

template <typename T>
__device__ __forceinline__ uint32_t rounded_pair(float first, float second) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  }
  return bits;
}

// Values 4j … 4j + 3 of lane 4g + t are rows g, g, g + 8, g + 8 of tokens 8j + 2t, 8j + 2t + 1.
template <typename T>
__device__ __forceinline__ void stage_rows(unsigned char* staging, const float* y, int lane) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < kStagedTokens<T> / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, row = lane / 4 + i % 4 / 2 * 8;
      *reinterpret_cast<float*>(staging + token * kStagingPitch<T> + row * 4) = y[i];
    }
  } else {
    // Four 8 x 8 matrices, transposed on the way: rows + 0 and + 8, tokens + 0 and + 8. Lane i says
    // where token i % 8 of matrix i / 8 goes.
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(
        staging + (lane / 16 * 8 + lane % 8) * kStagingPitch<T> + lane / 8 % 2 * 16));
#pragma unroll
    for (int j = 0; j < kStagedTokens<T> / 8; j += 2) {
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       to + j * 8 * kStagingPitch<T>),
                   "r"(rounded_pair<T>(y[4 * j], y[4 * j + 1])),
                   "r"(rounded_pair<T>(y[4 * j + 2], y[4 * j + 3])),
                   "r"(rounded_pair<T>(y[4 * j + 4], y[4 * j + 5])),
                   "r"(rounded_pair<T>(y[4 * j + 6], y[4 * j + 7]))
                   : "memory");
    }
  }
}

template <typename T>
struct alignas(16) Vector {
  T values[16 / sizeof(T)];
};

// What was staged, to token `token` and columns `column` … `end` - 1 of the result.
template <typename T>
__device__ __forceinline__ void store_staged(const unsigned char* staging, const StoreTarget& to,
                                             int lane, int column, int end, int token) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kVectors = kTileRows / kVector;
  const int n = column + lane % kVectors * kVector;
  const bool whole = to.n % kVector == 0;  // then no vector is split, and all are aligned
#pragma unroll
  for (int i = 0; i < kStagedTokens<T> * kVectors / 32; ++i) {
    const int in_block = i * (32 / kVectors) + lane / kVectors, m = token + in_block;
    if (m >= to.m || n >= end) continue;
    const unsigned char* const from = staging + in_block * kStagingPitch<T> + lane % kVectors * 16;
    const int64_t at = static_cast<int64_t>(m) * to.n + n;
    T* const y = static_cast<T*>(to.values) + at;
    const T* const r = static_cast<const T*>(to.residual) + at;
    if (whole) {
      Vector<T> out = *reinterpret_cast<const Vector<T>*>(from);
      if (to.residual != nullptr) {
        const Vector<T> residual = *reinterpret_cast<const Vector<T>*>(r);
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          out.values[e] = rounded<T>(widened(out.values[e]) + widened(residual.values[e]));
        }
      }
      *reinterpret_cast<Vector<T>*>(y) = out;
    } else {
#pragma unroll 1
      for (int e = 0; e < kVector && n + e < end; ++e) {
        const T value = reinterpret_cast<const T*>(from)[e];
        y[e] = to.residual == nullptr ? value : rounded<T>(widened(value) + widened(r[e]));
      }
    }
  }
}

template <typename T, int kChunks>
__device__ __forceinline__ void store_rows_as(const StoreTarget& to, const float (*y)[32],
                                              unsigned char* staging, int lane, int column, int end,
                                              int token) {
  constexpr int kValues = kStagedTokens<T> / 2;  // of a lane
#pragma unroll
  for (int i = 0; i < kChunks * 32; i += kValues) {
    __syncwarp();  // the staged in front were read
    stage_rows<T>(staging, &y[i / 32][i % 32], lane);
    __syncwarp();
    store_staged<T>(staging, to, lane, column, end, token + 2 * i);
  }
}

// Rows g <- what becomes of gates in them and ups in rows g + 8.
template <int kChunks>
__device__ __forceinline__ void gate_rows(float (*y)[32], Gate gate) {
  with_activation(gate, [&](auto activated) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (i % 4 < 2) y[c][i] = __fmul_rn(activated(y[c][i]), y[c][i + 2]);
      }
    }
  });
}

// A warp's rows from `row` on x all tokens from `token` on: y of kChunks x 64 tokens.
template <int kChunks, bool kGates>
__device__ __forceinline__ void store_rows(const WgmmaParams& p, float (*y)[32],
                                           unsigned char* staging, int lane, int row, int token) {
  if (p.y.bias != nullptr) {
    const int n = row + lane / 4;
    const float bias[2] = {n < p.rows ? p.y.bias[n] : 0, n + 8 < p.rows ? p.y.bias[n + 8] : 0};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 32; ++i) y[c][i] += bias[i % 4 / 2];
    }
  }
  const bool gated = kGates && p.gate != Gate::kNone;
  if (gated) gate_rows<kChunks>(y, p.gate);
  const int column = gated ? row / 2 : row;
  const int end = min(p.y.n, column + (gated ? kTileRows / 2 : kTileRows));
  if (p.type == FloatType::kFp32) {
    store_rows_as<float, kChunks>(p.y, y, staging, lane, column, end, token);
  } else if (p.type == FloatType::kFp16) {
    store_rows_as<__half, kChunks>(p.y, y, staging, lane, column, end, token);
  } else {
    store_rows_as<__nv_bfloat16, kChunks>(p.y, y, staging, lane, column, end, token);
  }
}

}  // namespace flexq_kernels::gpu
