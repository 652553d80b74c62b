// The end of a pass of the stream family: chains of groups are added and become elements of the
// output.
//
// Each warp has the sums of one chain for 8 * kTokenTiles tokens. They meet in shared memory, a few
// row tiles at a time, in the block that made them:
//
//   partial [8 / kSplit chains][kAtOnce row tiles][tokens][16 rows + 4]
//
// (tokens 2t apart in the writing lanes are 8 t banks apart: no conflicts), and every thread of the
// cluster takes some elements and adds their eight chains in order, those of other blocks read over
// the cluster's network.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "flexq_kernels/gpu/stream_gemm_copy.cuh"
#include "flexq_kernels/gpu/tile_product.cuh"

namespace flexq_kernels::gpu {

// For a block there is room beside that of the kernel in front only if both want the same, the
// largest, share of a multiprocessor's memory as shared memory.
inline void prefer_shared_memory(const void* kernel) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "shared memory of a kernel");
}

// ---- an element of the output ----

struct StreamElement {
  int64_t at = -1;  // -1: nobody's
  float bias = 0.0f;
  float residual = 0.0f;
};

template <typename T>
__device__ __forceinline__ float widen(const void* values, int64_t at) {
  return static_cast<float>(static_cast<const T*>(values)[at]);
}

// What can be read before the sums are there.
__device__ __forceinline__ StreamElement open_element(const StreamArgs& args, int row, int token,
                                                      bool valid) {
  StreamElement e;
  if (!valid || row >= args.n || token >= args.m) return e;
  e.at = int64_t{token} * args.n + row;
  if (args.y.bias != nullptr) e.bias = args.y.bias[row];
  if (args.y.residual != nullptr) {
    e.residual = args.y.type == FloatType::kFp32   ? widen<float>(args.y.residual, e.at)
                 : args.y.type == FloatType::kFp16 ? widen<__half>(args.y.residual, e.at)
                                                   : widen<__nv_bfloat16>(args.y.residual, e.at);
  }
  return e;
}

template <typename T>
__device__ __forceinline__ void store_as(const Output& y, const StreamElement& e, float value) {
  T rounded = static_cast<T>(value);
  if (y.residual != nullptr) rounded = static_cast<T>(static_cast<float>(rounded) + e.residual);
  static_cast<T*>(y.values)[e.at] = rounded;
}

__device__ __forceinline__ void close_element(const StreamArgs& args, const StreamElement& e,
                                              float sum) {
  if (e.at < 0) return;
  const float value = args.y.bias != nullptr ? sum + e.bias : sum;
  switch (args.y.type) {
    case FloatType::kFp32:
      return store_as<float>(args.y, e, value);
    case FloatType::kFp16:
      return store_as<__half>(args.y, e, value);
    case FloatType::kBf16:
      return store_as<__nv_bfloat16>(args.y, e, value);
  }
}

// ---- the sums of a pass ----

template <int kTokenTiles, int kSplit, int kTiles, int kAtOnce>
struct StreamFinish {
  static constexpr int kTokens = kTokenTile * kTokenTiles * kSplit;
  static constexpr int kRowStride = kTileRows + 4;
  static constexpr int kChains = kStreamChains / kSplit;  // of this block
  static constexpr int kChainFloats = kAtOnce * kTokens * kRowStride;
  static constexpr size_t kPartialBytes = sizeof(float) * kChains * kChainFloats;
  static constexpr int kThreads = kStreamWarps * 32 * kSplit;  // of the cluster
  static constexpr int kElements = kAtOnce * kTileRows * kTokens;
  static constexpr int kPerThread = (kElements + kThreads - 1) / kThreads;

  const StreamArgs& args;
  float* partial;
  int warp, lane, rank;

  __device__ __forceinline__ int index(int r, int token, int row) const {
    return (r * kTokens + token) * kRowStride + row;
  }

  __device__ __forceinline__ void write(const float (&sum)[kTokenTiles][4], int r) const {
    float* mine = partial + warp % kChains * kChainFloats;
    const int token = warp / kChains * kTokenTile * kTokenTiles + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mine[index(r, token + 8 * c + i % 2, lane / 4 + 8 * (i / 2))] = sum[c][i];
      }
    }
  }

  __device__ __forceinline__ float add_chains(int at) const {
    float total = 0.0f;
    if constexpr (kSplit == 1) {
      total = partial[at];
#pragma unroll
      for (int chain = 1; chain < kStreamChains; ++chain) {
        total += partial[chain * kChainFloats + at];
      }
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      float part[kStreamChains];
#pragma unroll
      for (int chain = 0; chain < kStreamChains; ++chain) {
        const float* from = partial + chain % kChains * kChainFloats + at;
        part[chain] = load_remote(cluster_address(shared_address(from), chain / kChains));
      }
      total = part[0];
#pragma unroll
      for (int chain = 1; chain < kStreamChains; ++chain) total += part[chain];
#endif
    }
    return total;
  }

  // Of `count` row tiles from the first. meet.before() returns when `partial` may be written,
  // meet.between() when all of the cluster have written, meet.after() says that this warp has read.
  template <typename Meet>
  __device__ __forceinline__ void run(const float (&sum)[kTiles][kTokenTiles][4], int first_tile,
                                      int count, Meet& meet) const {
    const int thread = (rank * kStreamWarps + warp) * 32 + lane;
#pragma unroll 1
    for (int first = 0; first < count; first += kAtOnce) {
      StreamElement element[kPerThread];
      int at[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int e = thread + j * kThreads;
        const int row = e % kTileRows, r = e / kTileRows % kAtOnce;
        const int token = e / kTileRows / kAtOnce;
        at[j] = index(r, token, row);
        element[j] = open_element(args, (first_tile + first + r) * kTileRows + row, token,
                                  e < kElements && first + r < count);
      }
      meet.before();
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {  // registers are chosen at compile time
        if (r >= first && r < first + kAtOnce && r < count) write(sum[r], r - first);
      }
      meet.between();
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (element[j].at >= 0) close_element(args, element[j], add_chains(at[j]));
      }
      meet.after();
    }
  }
};

// ---- the entry that dumps group sums ----

template <int kTokenTiles>
__device__ __forceinline__ void store_group_sums(const StreamArgs& args,
                                                 const int32_t (&sum)[kTokenTiles][4], int tile,
                                                 int first_token, int group, int lane) {
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile * kTileRows + lane / 4 + 8 * (i / 2);
      const int token = first_token + 8 * c + lane % 4 * 2 + i % 2;
      if (row >= args.n || token >= args.m) continue;
      args.sums[(int64_t{token} * args.n + row) * args.groups + group] = group_sum(sum[c][i]);
    }
  }
}

}  // namespace flexq_kernels::gpu
