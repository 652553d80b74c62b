// What a block has of the problem where a cluster of the wgmma family cuts K: a tile's rows and all
// tokens are common to the cluster, and each block has a slice of the groups. In the end each adds
// up the sums of some tokens, in the order of the slices, and stores them.
#pragma once

#include "flexq_kernels/gpu/hopper.cuh"
#include "flexq_kernels/gpu/output.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

struct Slice {
  int rank, count;           // of all slices
  int tile;                  // of rows
  int group, groups;         // of its slice
  int share, token, tokens;  // of a block, at most; those that it stores

  __device__ __forceinline__ explicit Slice(const WgmmaParams& p)
      : rank(static_cast<int>(cluster_rank())),
        count(p.slices),
        tile(static_cast<int>(blockIdx.x) / count),
        group(p.groups * rank / count),
        groups(p.groups * (rank + 1) / count - group),
        share((p.y.m + count - 1) / count) {
    token = first_token(rank, p.y.m);
    tokens = first_token(rank + 1, p.y.m) - token;
  }

  __device__ __forceinline__ int first_token(int of, int m) const { return min(of * share, m); }

  // As of WgmmaSchedule::Cluster: one part.
  __device__ __forceinline__ int steps() const { return groups; }
  __device__ __forceinline__ WgmmaPart part(int) const { return {tile, group, group + groups}; }
};

// Of the warps that multiply.
template <int kWarps>
__device__ __forceinline__ void multipliers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory");
}

// Sums of a token's rows row … row + 3, those of the problem.
template <typename T>
__device__ __forceinline__ void store_four(const WgmmaParams& p, int token, int row,
                                           const float (&sums)[4]) {
  struct alignas(4 * sizeof(T)) Four {
    T values[4];
  };
  const int64_t at = static_cast<int64_t>(token) * p.y.n + row;
  const Output y{p.y.values, p.type, p.y.bias, p.y.residual};
  if (p.y.n % 4 != 0) {
    for (int e = 0; e < 4 && row + e < p.y.n; ++e) {
      store_output_as<T>(y, at + e, row + e, sums[e]);
    }
    return;
  }
  Four out, residual;
  if (y.residual != nullptr) {
    residual = *reinterpret_cast<const Four*>(static_cast<const T*>(y.residual) + at);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    out.values[e] = rounded<T>(y.bias == nullptr ? sums[e] : sums[e] + y.bias[row + e]);
    if (y.residual == nullptr) continue;
    out.values[e] = rounded<T>(widened(out.values[e]) + widened(residual.values[e]));
  }
  *reinterpret_cast<Four*>(static_cast<T*>(y.values) + at) = out;
}

}  // namespace flexq_kernels::gpu
