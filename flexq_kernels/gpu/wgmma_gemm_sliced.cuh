// The kernel of the wgmma family for few tokens, where time is that of the weights' bytes: a
// cluster of blocks computes one tile of 128 rows x all tokens, each block a slice of K, so that
// all multiprocessors stream weights however few the tiles are.
//
//   k:   | block 0      | block 1      | block 2      | block 3      |    of a cluster of four
//   y =    ((slice 0    +   slice 1)   +   slice 2)   +   slice 3         sums of all tokens
//          ^ tokens 0-15                               ^ tokens 48-63     stored by this block
//
// Two blocks share a multiprocessor. In each a thread of warpgroup 2 copies packed weights, tokens
// and scales into a ring of stages, one for each group; warpgroups 0 and 1 multiply 64 rows each.
// At the end every block sends the sums of another block's tokens to it, shared memory to shared
// memory.
#pragma once

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_chunk.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_copy.cuh"
#include "flexq_kernels/gpu/wgmma_gemm_slice.cuh"

namespace flexq_kernels::gpu {

constexpr int kSlicedRows = 128;
constexpr int kSlicedWarps = kSlicedRows / kTileRows;  // multiplying ones
constexpr int kSlicedThreads = 32 * kSlicedWarps + 128;

// Shared memory, in this order. At the end sums lie where the stages were: those of the block's
// slice, and what others sent it, both [token][row, 4 of padding that spread the rows of eight
// tokens over all banks].
template <int kTokens>
struct SlicedShared {
  static constexpr int kCodes = kTokens * kGroupSize;
  static constexpr int kWeight = kSlicedWarps * kTileBytes;
  static constexpr int kWeightScales = kSlicedRows * 2;
  static constexpr int kScales = kTokens * 4;
  static constexpr int kStage = kCodes + kWeight + kWeightScales + kScales;
  static constexpr int kFixed = 1024 + 128;  // alignment, barriers
  static constexpr int kStages = (kWgmmaSharedBytes / 2 - 1024 - kFixed) / kStage;
  static constexpr int kBytes = kFixed + kStages * kStage;

  static constexpr int kWeightAt = kStages * kCodes;
  static constexpr int kWeightScalesAt = kWeightAt + kStages * kWeight;
  static constexpr int kScalesAt = kWeightScalesAt + kStages * kWeightScales;
  static constexpr int kFullAt = kScalesAt + kStages * kScales;
  static constexpr int kEmptyAt = kFullAt + 8 * kStages;
  static constexpr int kSentAt = kEmptyAt + 8 * kStages;  // barrier: all sums are here

  static constexpr int kPitch = kSlicedRows + 4;
  static constexpr int kTokenBytes = kPitch * 4;
  static constexpr int kReceivedAt = kTokens * kTokenBytes;
  static constexpr int kMostReceived = kTokens + kWgmmaMostSlices;  // tokens of all slices
  static_assert(kStages >= 4 && kFixed - 1024 >= 16 * kStages + 8);
  static_assert(kReceivedAt + kMostReceived * kTokenBytes <= kFullAt);
};

template <int kTokens>
__device__ __forceinline__ void copy_slice(const WgmmaParams& p, const Slice& slice,
                                           uint32_t shared) {
  using Shared = SlicedShared<kTokens>;
  const auto copy_weight = [&](int i, uint32_t stage) {
    const uint32_t full = shared + Shared::kFullAt + 8 * stage;
    mbarrier_arrive_expecting(full, Shared::kStage);
    copy_tensor(shared + Shared::kWeightAt + stage * Shared::kWeight, p.weight_codes, full, 0,
                slice.group + i, slice.tile * kSlicedWarps);
    copy_tensor(shared + Shared::kWeightScalesAt + stage * Shared::kWeightScales, p.weight_scales,
                full, 0, slice.group + i, slice.tile * kSlicedWarps);
  };
  const auto copy_tokens = [&](int i, uint32_t stage) {
    const uint32_t full = shared + Shared::kFullAt + 8 * stage;
    copy_tensor(shared + Shared::kScalesAt + stage * Shared::kScales, p.scales, full, 0,
                slice.group + i);
    copy_tensor(shared + stage * Shared::kCodes, p.codes, full, (slice.group + i) * kGroupSize, 0);
  };
  // Weights depend on no kernel in front: a ring full of them may come now.
#pragma unroll 1
  for (int i = 0; i < Shared::kStages && i < slice.groups; ++i) copy_weight(i, i);
  pdl_wait();
  RingPlace<Shared::kStages> place;
#pragma unroll 1
  for (int i = 0; i < slice.groups; ++i, place.advance()) {
    if (i >= Shared::kStages) {
      mbarrier_wait(shared + Shared::kEmptyAt + 8 * place.stage, place.parity ^ 1);
      copy_weight(i, place.stage);
    }
    copy_tokens(i, place.stage);
  }
}

template <int kTokens, bool kDump>
struct SliceMultiplier {
  using Shared = SlicedShared<kTokens>;
  using Place = RingPlace<Shared::kStages>;
  static constexpr int kSums = kTokens / 2;  // of a lane

  const WgmmaParams& p;
  const Slice& slice;
  unsigned char* memory;
  uint32_t shared;
  int warp, lane;

  __device__ __forceinline__ void add_group(float (&y)[kSums], const Place& at, int group) const {
    mbarrier_wait(shared + Shared::kFullAt + 8 * at.stage, at.parity);
    uint32_t a[kStepsPerGroup][4];
    TileWords words;
    load_words(words, memory + Shared::kWeightAt + at.stage * Shared::kWeight + warp * kTileBytes,
               lane);
    unpack_words(a, words);
    // The shuffle tells the compiler that all lanes have the same, as wgmma wants it.
    const uint32_t codes =
        __shfl_sync(~0u, descriptor_address(shared + at.stage * Shared::kCodes), 0);
    multiply_chunk<0, kTokens>(a, codes, false);
    wgmma_wait<0>();
    float quarter[2];
    load_quarters(quarter, memory + Shared::kWeightScalesAt + at.stage * Shared::kWeightScales,
                  kTileRows * warp + lane / 4);
    float2 scales[kSums / 4];
    load_scales(scales, memory + Shared::kScalesAt + at.stage * Shared::kScales, lane);
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared + Shared::kEmptyAt + 8 * at.stage);
    float sums[kSums];
    read_sums<0>(sums);
    if constexpr (kDump) {
      dump_chunk(p, sums, slice.tile * kSlicedRows + kTileRows * warp + lane / 4, lane % 4 * 2,
                 group);
    } else {
      promote_chunk(y, sums, quarter, scales);
    }
  }

  // All groups of the slice; then its sums lie in shared memory, for copies to read.
  __device__ __forceinline__ void run() const {
    float y[kSums] = {};
    Place place;
#pragma unroll 1
    for (int i = 0; i < slice.groups; ++i, place.advance()) add_group(y, place, slice.group + i);
    if constexpr (kDump) return;
    multipliers_sync<kSlicedWarps>();  // no warp needs a stage
    float* const to = reinterpret_cast<float*>(memory) + lane % 4 * 2 * Shared::kPitch +
                      kTileRows * warp + lane / 4;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      to[(i / 4 * 8 + i % 2) * Shared::kPitch + i % 4 / 2 * 8] = y[i];
    }
    copies_see_writes();
    multipliers_sync<kSlicedWarps>();
  }
};

// To every other block of the cluster the sums of its tokens: [slice][its tokens].
template <int kTokens>
__device__ __forceinline__ void send_sums(const WgmmaParams& p, const Slice& slice,
                                          uint32_t shared) {
  using Shared = SlicedShared<kTokens>;
#pragma unroll 1
  for (int to = 0; to < slice.count; ++to) {
    const int token = slice.first_token(to, p.y.m);
    const int tokens = slice.first_token(to + 1, p.y.m) - token;
    if (tokens == 0) return;
    if (to == slice.rank) continue;
    copy_to_block(to, shared + Shared::kReceivedAt + slice.rank * tokens * Shared::kTokenBytes,
                  shared + token * Shared::kTokenBytes, tokens * Shared::kTokenBytes,
                  shared + Shared::kSentAt);
  }
}

// Four rows of a token at a time. The block's own sums are read where they lie.
template <typename T, int kTokens>
__device__ __forceinline__ void store_sums(const WgmmaParams& p, const Slice& slice,
                                           const unsigned char* memory) {
  using Shared = SlicedShared<kTokens>;
  constexpr int kVectors = kSlicedRows / 4;  // of a token
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < slice.tokens * kVectors; i += 32 * kSlicedWarps) {
    const int token = i / kVectors, row = slice.tile * kSlicedRows + i % kVectors * 4;
    if (row >= p.y.n) continue;
    const auto slice_sums = [&](int of) {
      const int at = of == slice.rank
                         ? (slice.token + token) * Shared::kTokenBytes
                         : Shared::kReceivedAt + (of * slice.tokens + token) * Shared::kTokenBytes;
      return *reinterpret_cast<const float4*>(memory + at + i % kVectors * 16);
    };
    float4 four = slice_sums(0);
#pragma unroll 1
    for (int s = 1; s < slice.count; ++s) {
      const float4 more = slice_sums(s);
      four.x += more.x;
      four.y += more.y;
      four.z += more.z;
      four.w += more.w;
    }
    const float sums[4] = {four.x, four.y, four.z, four.w};
    store_four<T>(p, slice.token + token, row, sums);
  }
}

// Warps that copy keep few registers: they leave in their own branch, and share no code behind it.
template <int kTokens, bool kDump>
__global__ void __launch_bounds__(kSlicedThreads, 2)
    sm90_w6ax_wgmma_sliced(const __grid_constant__ WgmmaParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = SlicedShared<kTokens>;
  extern __shared__ unsigned char unaligned[];
  const uint32_t shared = (shared_address(unaligned) + 1023) / 1024 * 1024;
  unsigned char* const memory = unaligned + (shared - shared_address(unaligned));
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Slice slice(p);
  declare_sums();
  pdl_launch_dependents();
  if (threadIdx.x == kSlicedWarps * 32) {
    for (int i = 0; i < Shared::kStages; ++i) {
      mbarrier_init(shared + Shared::kFullAt + 8 * i, 1);
      mbarrier_init(shared + Shared::kEmptyAt + 8 * i, kSlicedWarps);
    }
    mbarrier_init(shared + Shared::kSentAt, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expecting(shared + Shared::kSentAt,
                              (slice.count - 1) * slice.tokens * Shared::kTokenBytes);
  }
  __syncthreads();
  if (warp >= kSlicedWarps) {
    keep_registers<24>();
    if (threadIdx.x == kSlicedWarps * 32) copy_slice<kTokens>(p, slice, shared);
    __syncwarp();
    if constexpr (!kDump) {
      cluster_sync();
      cluster_sync_relaxed();
    }
    return;
  }
  take_registers<104>();
  pdl_wait();
  SliceMultiplier<kTokens, kDump>{p,      slice, memory,
                                  shared, warp,  static_cast<int>(threadIdx.x) % 32}
      .run();
  if constexpr (kDump) return;
  cluster_sync();  // no block needs a stage: others may write there
  if (threadIdx.x == 0) send_sums<kTokens>(p, slice, shared);
  mbarrier_wait(shared + Shared::kSentAt, 0);
  if (p.type == FloatType::kFp32) {
    store_sums<float, kTokens>(p, slice, memory);
  } else if (p.type == FloatType::kFp16) {
    store_sums<__half, kTokens>(p, slice, memory);
  } else {
    store_sums<__nv_bfloat16, kTokens>(p, slice, memory);
  }
  cluster_sync_relaxed();  // all sums that were sent have come
#endif
}

}  // namespace flexq_kernels::gpu
