// The end of a block of the stream family: chains of groups are added and become elements of the
// output.
//
// Each warp has the sums of one chain (but in kWide's blocks). They meet in shared memory, a row
// tile at a time:
//
//   partial [8 chains][tokens][16 rows + 4]
//
// (tokens 2t apart in the writing lanes are 8 t banks apart: no conflicts), and every thread takes
// some elements and adds their eight chains.
#pragma once

#include <algorithm>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/output.cuh"
#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "flexq_kernels/gpu/tile_product.cuh"
#include "flexq_kernels/gpu/weight_load.cuh"

namespace flexq_kernels::gpu {

// So much of a multiprocessor's memory as shared memory that `blocks` blocks fit; the rest is L1,
// where x is.
inline void prefer_shared_memory(const void* kernel, int blocks, size_t shared_bytes) {
  const size_t wanted = static_cast<size_t>(blocks) * (shared_bytes + 1024);
  const size_t all = current_device().shared_per_multiprocessor;
  const auto percent = static_cast<int>(std::min<size_t>(100, (100 * wanted + all - 1) / all));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, percent),
             "shared memory of a kernel");
}

// ---- an element of the output ----

struct StreamElement {
  int64_t at = -1;  // -1: nobody's
  float bias = 0.0f;
  float residual = 0.0f;
};

template <typename T>
__device__ __forceinline__ float widened_at(const void* values, int64_t at) {
  return widened(static_cast<const T*>(values)[at]);
}

// What can be read before the sums are there.
__device__ __forceinline__ StreamElement open_element(const StreamArgs& args, int row, int token,
                                                      bool valid) {
  StreamElement e;
  if (!valid || row >= args.n || token >= args.m) return e;
  e.at = int64_t{token} * args.n + row;
  if (args.y.bias != nullptr) e.bias = args.y.bias[row];
  if (args.y.residual != nullptr) {
    e.residual = args.y.type == FloatType::kFp32 ? widened_at<float>(args.y.residual, e.at)
                 : args.y.type == FloatType::kFp16
                     ? widened_at<__half>(args.y.residual, e.at)
                     : widened_at<__nv_bfloat16>(args.y.residual, e.at);
  }
  return e;
}

template <typename T>
__device__ __forceinline__ void store_as(const Output& y, const StreamElement& e, float value) {
  T out = rounded<T>(value);
  if (y.residual != nullptr) out = rounded<T>(widened(out) + e.residual);
  static_cast<T*>(y.values)[e.at] = out;
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

// ---- the sums of eight warps ----

template <int kTokenTiles, int kTiles>
class StreamFinish {
 public:
  static constexpr int kTokens = kTokenTile * kTokenTiles;
  static constexpr int kRowStride = kTileRows + 4;
  static constexpr int kChainFloats = kTokens * kRowStride;
  static constexpr size_t kPartialBytes = sizeof(float) * kStreamChains * kChainFloats;

  // partial: in shared memory.
  __device__ __forceinline__ StreamFinish(const StreamArgs& args, float* partial, int warp,
                                          int lane)
      : args_(args), partial_(partial), warp_(warp), lane_(lane) {}

  // Of `count` row tiles from the first on; the sums of chain `warp`.
  __device__ __forceinline__ void run(const float (&sum)[kTiles][kTokenTiles][4], int first_tile,
                                      int count) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      if (r >= count) break;
      StreamElement element[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int e = first_element() + j * kThreads;
        element[j] = open_element(args_, (first_tile + r) * kTileRows + e % kTileRows,
                                  e / kTileRows, e < kElements);
      }
      if (used_) __syncthreads();  // all have read the sums before
      used_ = true;
      write(sum[r]);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (element[j].at >= 0) {
          close_element(args_, element[j], add_chains(first_element() + j * kThreads));
        }
      }
    }
  }

 private:
  static constexpr int kThreads = kStreamChains * 32;
  static constexpr int kElements = kTileRows * kTokens;
  static constexpr int kPerThread = (kElements + kThreads - 1) / kThreads;

  __device__ __forceinline__ int first_element() const { return warp_ * 32 + lane_; }

  __device__ __forceinline__ void write(const float (&sum)[kTokenTiles][4]) const {
    float* mine = partial_ + warp_ * kChainFloats + lane_ % 4 * 2 * kRowStride + lane_ / 4;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mine[(8 * c + i % 2) * kRowStride + 8 * (i / 2)] = sum[c][i];
      }
    }
  }

  __device__ __forceinline__ float add_chains(int element) const {
    const float* from = partial_ + element / kTileRows * kRowStride + element % kTileRows;
    float half[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      half[h] = from[4 * h * kChainFloats];
#pragma unroll
      for (int c = 1; c < 4; ++c) half[h] += from[(4 * h + c) * kChainFloats];
    }
    return half[0] + half[1];
  }

  const StreamArgs& args_;
  float* partial_;
  int warp_, lane_;
  bool used_ = false;
};

// ---- the entry that dumps group sums ----

template <int kTokenTiles>
__device__ __forceinline__ void store_group_sums(const StreamArgs& args,
                                                 const int32_t (&sum)[kTokenTiles][4], int tile,
                                                 int group, int lane) {
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile * kTileRows + lane / 4 + 8 * (i / 2);
      const int token = 8 * c + lane % 4 * 2 + i % 2;
      if (row >= args.n || token >= args.m) continue;
      args.sums[(int64_t{token} * args.n + row) * args.groups + group] = group_sum(sum[c][i]);
    }
  }
}

}  // namespace flexq_kernels::gpu
