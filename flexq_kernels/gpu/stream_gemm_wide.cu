// The stream family for more tokens, up to 64. What x costs the L2 cache decides: 128 m bytes per
// group and block, beside 1568 of each row tile. So a block has many row tiles, up to 16, and its
// warps share both operands in shared memory. Where a GPU's blocks would have fewer, `split` blocks
// of a cluster have their row tiles in common, and a part of k each:
//
//              chains 0 1   2 3   4 5   6 7          a stage is a group of k:
//   row tiles | block 0 | 1     | 2     | 3     |    | row tiles 0 … R - 1 | tokens | their scales
//   |
//
// Stages travel through a ring, copied by all warps, kStages - 1 of them under way. Warp (part, i)
// multiplies row tiles i, i + kRowWarps … with the 32 tokens of its part. It has all chains of the
// block, one after the other; at the end of each its sums are added to a place in shared memory,
// every thread's own: one for the chains 0-3 and one for 4-7, or, of a cluster of four, one for
// each chain. Threads of a cluster that have the same number add up each other's at the end.
//
// Before the kernel in front has ended (pdl_wait) the weights of the first stages are on their way.
#include <algorithm>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/stream_gemm_copy.cuh"
#include "flexq_kernels/gpu/stream_gemm_finish.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kPartTiles = 4;  // token tiles of a warp
constexpr int kPartTokens = kPartTiles * kTokenTile;
constexpr int kStoredTileBytes = kTileBytes + kTileScaleBytes;

template <int kParts, int kRowWarps, int kTiles, int kStages>
struct WideShape {
  static constexpr int kWarps = kParts * kRowWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTokens = kParts * kPartTokens;
  static constexpr int kRowTiles = kRowWarps * kTiles;  // of a block, at most
  static constexpr int kCodeBytes = kTokens * kGroupSize;
  // Sums in shared memory: [2 places][kQuads][kThreads] of four.
  static constexpr int kQuads = kTiles * kPartTiles;
  static constexpr int kPlaceBytes = kQuads * kThreads * 16;
  static_assert(kPlaceBytes == stream_wide_place_bytes(kTokens, kRowTiles));
};

template <typename Shape, int kRowWarps, int kTiles, int kStages, bool kSums>
class WideBlock {
  using Tokens = TokenFragment<kPartTiles>;
  using Sums = float[kTiles][kPartTiles][4];

 public:
  __device__ __forceinline__ WideBlock(const StreamArgs& args, uint32_t shared)
      : args_(args),
        rank_(static_cast<int>(blockIdx.x) % args.split),
        tiles_(EvenSplit(args.row_tiles, static_cast<int>(gridDim.x) / args.split)
                   .part(static_cast<int>(blockIdx.x) / args.split)),
        warp_(static_cast<int>(threadIdx.x / 32)),
        lane_(static_cast<int>(threadIdx.x % 32)),
        stage_bytes_(stream_wide_stage_bytes(Shape::kTokens, tiles_.count)),
        sums_(shared + threadIdx.x * 16),
        ring_(shared + 2 * Shape::kPlaceBytes),
        policy_(stream_once_policy()) {}

  __device__ __forceinline__ void run() {
    const int chains = kStreamChains / args_.split;
    int chain = rank_ * chains;
    const StreamRange last = stream_chain(args_.groups, chain + chains - 1);
    const int first = stream_chain(args_.groups, chain).first, end = last.first + last.count;
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) ask_weights(s, first + s, end);
    clear_sums();
    pdl_wait();
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      ask_tokens(s, first + s, end);
      commit_copies();
    }
    Sums y = {};
    int taken = 0, asked = kStages - 1;
    int chain_end = first + stream_chain(args_.groups, chain).count;
#pragma unroll 1
    for (int group = first; group < end; ++group) {
      wait_copies<kStages - 2>();
      __syncthreads();  // all have copied this stage, and multiplied the one before
      ask_weights(asked, group + kStages - 1, end);
      ask_tokens(asked, group + kStages - 1, end);
      commit_copies();
      multiply_group(y, ring_ + taken * stage_bytes_, group);
      if (!kSums && group + 1 == chain_end) {
        add_to_sums(y, chain);
        chain_end += stream_chain(args_.groups, ++chain).count;
      }
      asked = taken;
      taken = taken + 1 == kStages ? 0 : taken + 1;
    }
    if (!kSums) finish();
  }

 private:
  // In a stage.
  __device__ __forceinline__ int tokens_at() const { return tiles_.count * kStoredTileBytes; }
  __device__ __forceinline__ int part() const { return warp_ / kRowWarps; }
  // Of the block's row tiles.
  __device__ __forceinline__ int tile(int t) const { return warp_ % kRowWarps + t * kRowWarps; }

  __device__ __forceinline__ void ask_weights(int slot, int group, int end) const {
    if (group >= end) return;
#pragma unroll 1
    for (int r = warp_; r < tiles_.count; r += Shape::kWarps) {
      const int64_t from = int64_t{tiles_.first + r} * args_.groups + group;
      const uint32_t to = ring_ + slot * stage_bytes_ + r * kStoredTileBytes + lane_ * 16;
      const uint8_t* codes = args_.w.codes + from * kTileBytes + lane_ * 16;
#pragma unroll
      for (int c = 0; c < 3; ++c) copy_async(to + c * 512, codes + c * 512, policy_);
      if (lane_ < 2) {
        copy_async(to + kTileBytes, args_.w.scales + from * kTileRows + lane_ * 8, policy_);
      }
    }
  }

  // Of tokens past m the last one again. In the rows of odd tokens chunks change places in pairs,
  // so that the lanes of a fragment meet no bank twice.
  __device__ __forceinline__ void ask_tokens(int slot, int group, int end) const {
    if (group >= end) return;
    const uint32_t to = ring_ + slot * stage_bytes_ + tokens_at();
#pragma unroll
    for (int j = 0; j < (Shape::kTokens * 8 + Shape::kThreads - 1) / Shape::kThreads; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * Shape::kThreads;
      const int token = i / 8, chunk = i % 8;
      if (token >= Shape::kTokens) break;
      const int64_t from = int64_t{min(token, args_.m - 1)} * args_.groups + group;
      copy_async(to + token * kGroupSize + (chunk ^ (token & 1)) * 16,
                 args_.x.codes + from * kGroupSize + chunk * 16);
    }
    if (threadIdx.x < Shape::kTokens / 4) {
      const int four = min(static_cast<int>(threadIdx.x), (args_.m - 1) / 4);
      copy_async(to + Shape::kCodeBytes + threadIdx.x * 16,
                 args_.x.scales + group * args_.x.scale_stride + four * 4);
    }
  }

  __device__ __forceinline__ Tokens load_tokens(uint32_t from) const {
    Tokens x;
    const int token = part() * kPartTokens + lane_ / 4;
    const uint32_t codes = from + token * kGroupSize + (lane_ % 4 * 2 ^ (token & 1)) * 16;
    const uint32_t scales = from + Shape::kCodeBytes + (part() * kPartTokens + lane_ % 4 * 2) * 4;
#pragma unroll
    for (int c = 0; c < kPartTiles; ++c) {
      x.codes[c][0] = load_shared_words(codes + c * kTokenTile * kGroupSize);
      x.codes[c][1] = load_shared_words((codes ^ 16) + c * kTokenTile * kGroupSize);
      x.scales[c] = load_shared_pair(scales + c * kTokenTile * 4);
    }
    return x;
  }

  __device__ __forceinline__ void multiply_group(Sums& y, uint32_t stage, int group) const {
    if (tile(0) >= tiles_.count) return;
    const Tokens x = load_tokens(stage + tokens_at());
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (tile(t) >= tiles_.count) break;
      const uint32_t at = stage + tile(t) * kStoredTileBytes;
      const TileWords w = load_tile(at, lane_);
      const TileScales scales = load_tile_scales(at + kTileBytes, lane_);
      int32_t sum[kPartTiles][4];
      multiply_tile(sum, w, x);
      if constexpr (kSums) {
        store_group_sums(args_, sum, tiles_.first + tile(t), part() * kPartTokens, group, lane_);
      } else {
        add_scaled(y[t], sum, scales, x);
      }
    }
  }

  __device__ __forceinline__ uint32_t sums_at(int place, int quad) const {
    return sums_ + place * Shape::kPlaceBytes + quad * (Shape::kThreads * 16);
  }

  __device__ __forceinline__ void clear_sums() const {
    const float zeros[4] = {};
#pragma unroll
    for (int q = 0; q < Shape::kQuads; ++q) {
      store_shared_floats(sums_at(0, q), zeros);
      store_shared_floats(sums_at(1, q), zeros);
    }
  }

  // The end of a chain.
  __device__ __forceinline__ void add_to_sums(Sums& y, int chain) const {
    const int place = args_.split == 1 ? chain / 4 : args_.split == 2 ? 0 : chain % 2;
#pragma unroll
    for (int q = 0; q < Shape::kQuads; ++q) {
      float (&mine)[4] = y[q / kPartTiles][q % kPartTiles];
      float sum[4];
      load_shared_floats(sum, sums_at(place, q));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i] += mine[i];
        mine[i] = 0.0f;
      }
      store_shared_floats(sums_at(place, q), sum);
    }
  }

  // Adds one block's `kPlaces` places after the other.
  template <int kBlocks, int kPlaces>
  __device__ __forceinline__ void add_blocks(float (&sum)[4], int first_block, int place,
                                             int quad) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    float part[kBlocks * kPlaces][4];
#pragma unroll
    for (int p = 0; p < kBlocks * kPlaces; ++p) {
      load_cluster_floats(
          part[p], cluster_address(sums_at(place + p % kPlaces, quad), first_block + p / kPlaces));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = part[0][i];
#pragma unroll
      for (int p = 1; p < kBlocks * kPlaces; ++p) sum[i] += part[p][i];
    }
#else
    load_shared_floats(sum, sums_at(place, quad));
#endif
  }

  // All chains of a quad of this block's.
  __device__ __forceinline__ void store_quad(int quad) const {
    float low[4], high[4];  // chains 0-3, 4-7
    if (args_.split == 1) {
      load_shared_floats(low, sums_at(0, quad));
      load_shared_floats(high, sums_at(1, quad));
    } else if (args_.split == 2) {
      add_blocks<1, 1>(low, 0, 0, quad);
      add_blocks<1, 1>(high, 1, 0, quad);
    } else {
      add_blocks<2, 2>(low, 0, 0, quad);
      add_blocks<2, 2>(high, 2, 0, quad);
    }
    const int t = quad / kPartTiles, c = quad % kPartTiles;
    if (tile(t) >= tiles_.count) return;
    const int row = (tiles_.first + tile(t)) * kTileRows + lane_ / 4;
    const int token = part() * kPartTokens + c * kTokenTile + lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      close_element(args_, open_element(args_, row + 8 * (i / 2), token + i % 2, true),
                    low[i] + high[i]);
    }
  }

  // Each block of a cluster stores some of the quads.
  __device__ __forceinline__ void finish() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (args_.split > 1) cluster_sync();
#endif
#pragma unroll 1
    for (int quad = rank_; quad < Shape::kQuads; quad += args_.split) store_quad(quad);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (args_.split > 1) cluster_sync();  // others have read this block's
#endif
  }

  const StreamArgs& args_;
  int rank_;  // in the cluster
  StreamRange tiles_;
  int warp_, lane_;
  int stage_bytes_;
  uint32_t sums_, ring_;
  uint64_t policy_;
};

template <int kParts, int kRowWarps, int kTiles, int kStages, int kResident, bool kSums>
__global__ void __launch_bounds__(kParts * kRowWarps * 32, kResident)
    sm80_w6ax_stream_gemm_wide(const __grid_constant__ StreamArgs args) {
  using Shape = WideShape<kParts, kRowWarps, kTiles, kStages>;
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  WideBlock<Shape, kRowWarps, kTiles, kStages, kSums>(args, shared_address(shared)).run();
}

// Clusters of `split` blocks.
template <typename Kernel>
void launch_clusters(Kernel* kernel, int clusters, int threads, size_t shared, const Launch& launch,
                     const StreamArgs& args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(clusters * args.split));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(launch.stream);
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (launch.programmatic) {
    cudaLaunchAttribute& programmatic = attributes[config.numAttrs++];
    programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    programmatic.val.programmaticStreamSerializationAllowed = 1;
  }
  if (args.split > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(args.split);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, args), "launch of a kernel");
}

// True if config and m fit the instance, after launching it.
template <int kParts, int kRowWarps, int kTiles, int kStages, int kResident>
bool launch_if(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  using Shape = WideShape<kParts, kRowWarps, kTiles, kStages>;
  if (config.tiles != Shape::kRowTiles || config.stages != kStages) return false;
  if (config.split != 1 && config.split != 2 && config.split != 4) return false;
  if (config.split > 1 && current_device().capability() < 90) return false;
  if (config.blocks < 1 || config.blocks > kResident) return false;
  if (args.m > Shape::kTokens) return false;
  const int clusters = stream_wide_clusters(args.row_tiles, config, current_device());
  const size_t shared =
      stream_wide_shared_bytes(Shape::kTokens, args.row_tiles, config, current_device());
  if (shared > current_device().shared_per_block) return false;
  const auto launch_one = [&](auto* kernel) {
    prefer_shared_memory(reinterpret_cast<const void*>(kernel), 1,
                         current_device().shared_per_multiprocessor);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)),
               "shared memory of a kernel");
    launch_clusters(kernel, clusters, Shape::kThreads, shared, launch, args);
  };
  if (args.sums == nullptr) {
    launch_one(sm80_w6ax_stream_gemm_wide<kParts, kRowWarps, kTiles, kStages, kResident, false>);
  } else {
    launch_one(sm80_w6ax_stream_gemm_wide<kParts, kRowWarps, kTiles, kStages, 1, true>);
  }
  return true;
}

}  // namespace

// In order of tokens: the first that fits is the cheapest. stream_configs() knows the list.
bool launch_stream_wide(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  return launch_if<1, 8, 1, 4, 2>(args, config, launch) ||
         launch_if<1, 16, 1, 5, 1>(args, config, launch) ||
         launch_if<2, 4, 1, 4, 2>(args, config, launch) ||
         launch_if<2, 8, 2, 3, 1>(args, config, launch);
}

}  // namespace flexq_kernels::gpu
