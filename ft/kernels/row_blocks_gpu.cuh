// How the blocks of a kernel share rows (rows_gpu.cuh): one each, or of many tokens as many blocks
// as run at once, each of which takes one row after another.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "flexq_kernels/gpu/device.h"
#include "ft/kernels/rows_gpu.cuh"

namespace flexq_ft::gpu {

// How a block takes rows: one, as Row<T, kVectors>, or one after another (kMany).
template <int kVectorsOfRow, bool kManyRows = false>
struct RowBlock {
  static constexpr int kVectors = kVectorsOfRow;
  static constexpr bool kMany = kManyRows;
  // Vectors of a thread that are on their way at a time.
  static constexpr int kAhead = kMany && kVectors > 2 ? 2 : kVectors;
  // Most threads, and blocks of them that a multiprocessor should hold: without the second, ptxas
  // spills to make room for more.
  static constexpr int kMostThreads = kMany           ? (kVectors == 4 ? 352 : 512)
                                      : kVectors == 1 ? 512
                                                      : 1024;
  static constexpr int kBlocks = kMostThreads <= 512 && kVectors <= 4 ? 2 : 1;
};

// The rows of a block. load(token, i) gives what vector i of a row is made of, take(token, i, raw)
// makes it, end(token) follows its last. Of many rows the next one's vectors are on their way while
// this one waits at barriers, for sums and for divisions.
template <typename Block, typename T, typename Load, typename Take, typename End>
__device__ __forceinline__ void each_row(Row<T, Block::kVectors>& row, int tokens, Load&& load,
                                         Take&& take, End&& end) {
  int token = static_cast<int>(blockIdx.x);
  if constexpr (Block::kVectors == 0) {
    for (int i = 0; i < row.count(); ++i) take(token, i, load(token, i));
    end(token);
  } else {
    constexpr int kAhead = Block::kAhead;
    decltype(load(0, 0)) ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = load(token, i);
#pragma unroll 1
    do {
      const int next = token + static_cast<int>(gridDim.x);
      if constexpr (Block::kMany) row.renew_columns();
#pragma unroll
      for (int i = 0; i < Block::kVectors; ++i) {
        auto& raw = ahead[i % kAhead];
        take(token, i, raw);
        const int then = i + kAhead;
        if (then < Block::kVectors) {
          raw = load(token, then);
        } else if (Block::kMany && next < tokens) {
          raw = load(next, then - Block::kVectors);
        }
      }
      end(token);
      token = next;
    } while (Block::kMany && token < tokens);
  }
}

// The token's scale of each_row(): loaded with the first vector of a row, used from there on.
struct RowScale {
  float value = 1.0f;
  float coming = 1.0f;

  template <typename In>
  __device__ __forceinline__ void load(const ProductView<In>& product, int64_t token, int i) {
    if (i == 0) coming = token_scale(product, token);
  }
  __device__ __forceinline__ float take(int i) {
    if (i == 0) value = coming;
    return value;
  }
};

// Host side.

// Of more tokens than this, blocks take several rows each.
constexpr int64_t kManyTokens = 256;

// How one block holds a row: its threads, and its shared memory.
struct RowLaunch {
  int threads;
  size_t shared_bytes;
};

// Calls f(RowBlock, launch) for rows of T. `plain` rows are aligned, and nothing is asked of them
// that only Row<T, 0> can do. kMany: vectors of a thread where rows are many, twice as many in
// longer ones; a sum has the same bits for every number of them.
template <typename T, int kMany, typename F>
void dispatch_row(int64_t columns, bool plain, bool many, F&& f) {
  const int64_t count = (columns + kVector - 1) / kVector;
  const auto threads = [&](int64_t vectors) {
    return static_cast<int>((count + vectors * 32 - 1) / (vectors * 32) * 32);
  };
  const auto held = [&](auto block) {
    using Block = decltype(block);
    const bool fits = plain && count <= Block::kVectors * Block::kMostThreads;
    if (fits) f(block, RowLaunch{threads(Block::kVectors), 0});
    return fits;
  };
  if (many && (held(RowBlock<kMany, true>{}) || held(RowBlock<2 * kMany, true>{}))) return;
  if (held(RowBlock<1>{}) || held(RowBlock<2>{})) return;
  constexpr int kMostThreads = RowBlock<0>::kMostThreads;
  const int64_t vectors = (count + kMostThreads - 1) / kMostThreads;
  const size_t bytes = static_cast<size_t>(vectors * threads(vectors)) * kVector * sizeof(T);
  f(RowBlock<0>{}, RowLaunch{threads(vectors), bytes});
}

// Blocks of a kernel that run at once on the current device. Kept: a prompt asks for each layer's
// ops, and the runtime computes it anew each time.
inline int64_t blocks_at_once(const void* kernel, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, size_t>, int64_t> known;
  int device = 0;
  FLEXQ_FT_CUDA(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(device, kernel, threads, shared_bytes);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  int blocks = 0;  // of a multiprocessor
  FLEXQ_FT_CUDA(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return known[key] = int64_t{blocks} * flexq_kernels::gpu::current_device().multiprocessors;
}

// One block per token, or as many as run at once, which share many tokens.
template <typename Block, typename... Params, typename... Args>
void launch_rows(Block, void (*kernel)(Params...), int64_t tokens, const RowLaunch& row,
                 size_t more_shared_bytes, Stream stream, Args&&... args) {
  FLEXQ_FT_CHECK_LE(tokens, kMostTokens, "tokens");
  const size_t bytes = row.shared_bytes + more_shared_bytes;
  if (bytes > 48 * 1024) allow_shared_memory(kernel, bytes);
  int64_t blocks = tokens;
  if (Block::kMany) {
    const auto* entry = reinterpret_cast<const void*>(kernel);
    blocks = std::min(tokens, blocks_at_once(entry, row.threads, bytes));
  }
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(row.threads)),
         bytes, stream, std::forward<Args>(args)...);
}

}  // namespace flexq_ft::gpu
