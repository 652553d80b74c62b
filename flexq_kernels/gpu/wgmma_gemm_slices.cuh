// The end of a block of the wgmma kernel whose cluster cuts K: the sums of its slice go to shared
// memory, where the stages were, and each block adds up its tokens' out of all blocks.
//
//   sums   [token][row, 4 of padding that spread the rows of eight tokens over all banks]
//
//   block 0 of two   slice 0: | its tokens | others |          y of its tokens = slice 0 + slice 1
//   block 1          slice 1: | its tokens | others |              read through the cluster
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm_slice.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_warp.cuh"

namespace flexq_kernels::gpu {

template <typename Tile>
struct SliceSums {
  static constexpr int kPitch = Tile::kRows + 4;
  static constexpr int kTokenBytes = kPitch * 4;
  static_assert(Tile::kTokens * kTokenBytes <= WgmmaShared<Tile>::kFullAt);

  const WgmmaWarp<Tile, false>& of;

  __device__ __forceinline__ void run() const {
    multipliers_sync<Tile::kWarps>();  // no warp needs a stage
    write();
    cluster_sync();  // the others' sums are there
    const Slice slice(of.p);
    if (of.p.type == FloatType::kFp32) {
      add<float>(slice);
    } else if (of.p.type == FloatType::kFp16) {
      add<__half>(slice);
    } else {
      add<__nv_bfloat16>(slice);
    }
    // The others have read this one's. A relaxed arrival would not say so: it orders no access that
    // comes before it (PTX ISA, "barrier.cluster"), and nothing else tells when a plain load of the
    // cluster's memory is performed, as an mbarrier does of a copy.
    cluster_sync();
  }

 private:
  __device__ __forceinline__ void write() const {
    constexpr int kChunks = Tile::kTokens / kWgmmaChunk;
    float* const to = reinterpret_cast<float*>(of.memory) + of.lane % 4 * 2 * kPitch +
                      kTileRows * of.warp + of.lane / 4;
#pragma unroll
    for (int r = 0; r < Tile::kRowTiles; ++r) {
#pragma unroll
      for (int i = 0; i < kChunks * 32; ++i) {
        to[(i / 4 * 8 + i % 2) * kPitch + r * Tile::kWarps * kTileRows + i % 4 / 2 * 8] =
            of.y[r * kChunks + i / 32][i % 32];
      }
    }
  }

  // Four rows of a token at a time; all slices are asked for before the first is added.
  template <typename T>
  __device__ __forceinline__ void add(const Slice& slice) const {
    constexpr int kVectors = Tile::kRows / 4;  // of a token
    const int thread = of.warp * 32 + of.lane;
#pragma unroll 1
    for (int i = thread; i < slice.tokens * kVectors; i += Tile::kWarps * 32) {
      const int token = slice.token + i / kVectors;
      const int row = slice.tile * Tile::kRows + i % kVectors * 4;
      if (row >= of.p.y.n) continue;
      const uint32_t at = of.shared + token * kTokenBytes + i % kVectors * 16;
      float parts[kWgmmaMostSlices][4];
#pragma unroll
      for (int s = 0; s < kWgmmaMostSlices; ++s) {
        if (s < slice.count) load_cluster_floats(parts[s], cluster_address(at, s));
      }
#pragma unroll
      for (int s = 1; s < kWgmmaMostSlices; ++s) {
        if (s >= slice.count) break;
#pragma unroll
        for (int e = 0; e < 4; ++e) parts[0][e] += parts[s][e];
      }
      store_four<T>(of.p, token, row, parts[0]);
    }
  }
};

}  // namespace flexq_kernels::gpu
