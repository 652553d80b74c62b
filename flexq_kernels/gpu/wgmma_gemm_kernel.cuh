// The kernel of the wgmma family. One block per multiprocessor stays and takes tile after tile:
//
//   warpgroup 0   one thread copies, group after group and tile after tile, into a ring of stages:
//                 8 to 16 packed row tiles, their scales, the codes of the tokens (TMA swizzles
//                 them as wgmma wants B) and their scales. In a cluster of two each block copies
//                 half of the tokens' codes, to both.
//   warpgroup 1   rows  0 …  63 x all tokens of the tile; of 256 rows also 128 … 191
//   warpgroup 2   rows 64 … 127;                           and 192 … 255
//   warpgroup 3   rows 128 … 191, in tiles of 192 rows
//
// Or, of few tiles, a block has a slice of the groups of one, as many blocks as a cluster has
// slices; their sums are added up at the end.
#pragma once

#include <type_traits>

#include "flexq_kernels/gpu/wgmma_gemm_chunks.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_slices.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_wide.cuh"

namespace flexq_kernels::gpu {

template <typename Tile>
constexpr int kWgmmaThreads = 128 + Tile::kWarps * 32;

template <typename Tile, bool kDump>
using WgmmaMultiplier =
    std::conditional_t<Tile::kWide, WideMultiplier<Tile, kDump>, ChunkMultiplier<Tile, kDump>>;

template <typename Tile, bool kDump>
__device__ __forceinline__ void run_block(const WgmmaParams& p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = WgmmaShared<Tile>;
  extern __shared__ unsigned char memory[];
  const uint32_t shared = (shared_address(memory) + 1023) / 1024 * 1024;
  declare_sums();
  pdl_launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      mbarrier_init(shared + Shared::kFullAt + 8 * i, 1);
      mbarrier_init(shared + Shared::kEmptyAt + 8 * i, Tile::kWarps * Tile::kCluster);
    }
    mbarrier_init_fence();
  }
  if constexpr (Tile::kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync_relaxed();
  }
  if (threadIdx.x < 128) {
    keep_registers<24>();
    if (threadIdx.x == 0) copy_operands<Tile>(p, shared);
    if constexpr (Tile::kSliced && !kDump) {
      // Both barriers of SliceSums. Nothing of these warps is to be ordered: they read and write no
      // sums, and their copies end in mbarriers that the multiplying warps have waited for.
      __syncwarp();
      cluster_sync_relaxed();
      cluster_sync_relaxed();
    }
  } else {
    take_registers<Tile::kWarps == 8 ? 240 : 160>();
    pdl_wait();
    WgmmaMultiplier<Tile, kDump> multiplier{{p, memory + (shared - shared_address(memory)), shared,
                                             static_cast<int>(threadIdx.x) / 32 - 4,
                                             static_cast<int>(threadIdx.x) % 32,
                                             WgmmaStep<Tile>(p)}};
    multiplier.run();
    if constexpr (Tile::kSliced && !kDump) SliceSums<Tile>{multiplier}.run();
  }
#endif
}

template <typename Tile, bool kDump>
__global__ void FLEXQ_CLUSTER(Tile::kCluster) __launch_bounds__(kWgmmaThreads<Tile>, 1)
    sm90_w6ax_wgmma_gemm(const __grid_constant__ WgmmaParams p) {
  run_block<Tile, kDump>(p);
}

// In clusters of p.slices blocks.
template <typename Tile, bool kDump>
__global__ void __launch_bounds__(kWgmmaThreads<Tile>, 1)
    sm90_w6ax_wgmma_slices(const __grid_constant__ WgmmaParams p) {
  run_block<Tile, kDump>(p);
}

}  // namespace flexq_kernels::gpu
