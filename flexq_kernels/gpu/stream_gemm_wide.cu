// The stream family for 17 to 32 tokens and many row tiles. What x costs the L2 cache is 128 m
// bytes per group and block, beside 1568 of each row tile. So a block has up to eight row tiles, a
// warp each, and its warps share the tokens in shared memory. Two blocks of a multiprocessor have
// an even share of all row tiles, so that one multiplies while the other waits. Where shares would
// be small, `split` = 2 blocks of a cluster have their row tiles in common, and one half of k each:
//
//              chains 0-3   4-7                  a stage is a group of k:
//   row tiles | block 0  | block 1 |            | row tiles 0 … R - 1 | tokens | their scales |
//
// Stages travel through a ring, copied by all warps, kWideStages - 1 of them under way. A warp has
// the block's chains one after the other; at the end of each its sums are added to those of the
// same half of k in shared memory, every thread's own. In the end threads that have the same number
// in a cluster add up the halves.
//
// Before the kernel in front has ended (pdl_wait) the weights of the first stages are on their way.
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/hopper.cuh"
#include "flexq_kernels/gpu/stream_gemm_finish.cuh"
#include "flexq_kernels/gpu/weight_load.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kTokenTiles = kWideTokens / kTokenTile;
constexpr int kWideThreads = kWideTiles * 32;
constexpr int kCodeBytes = kWideTokens * kGroupSize;
constexpr int kHalfBytes = kTokenTiles * kWideThreads * 16;  // [kTokenTiles][kWideThreads] of four
static_assert(wide_shared_bytes(0) == 2 * kHalfBytes + kWideStages * wide_stage_bytes(0));

template <bool kSums>
class WideBlock {
  using Tokens = TokenFragment<kTokenTiles>;
  using Sums = float[kTokenTiles][4];

 public:
  __device__ __forceinline__ WideBlock(const StreamArgs& args, uint32_t shared)
      : args_(args),
        rank_(static_cast<int>(blockIdx.x) % args.split),
        tiles_(EvenSplit(args.row_tiles, static_cast<int>(gridDim.x) / args.split)
                   .part(static_cast<int>(blockIdx.x) / args.split)),
        warp_(static_cast<int>(threadIdx.x / 32)),
        lane_(static_cast<int>(threadIdx.x % 32)),
        stage_bytes_(wide_stage_bytes(tiles_.count)),
        sums_(shared + threadIdx.x * 16),
        ring_(shared + 2 * kHalfBytes),
        policy_(stream_once_policy()) {}

  __device__ __forceinline__ void run() {
    const int chains = kStreamChains / args_.split;
    int chain = rank_ * chains;
    const StreamRange last = stream_chain(args_.groups, chain + chains - 1);
    const int first = stream_chain(args_.groups, chain).first, end = last.first + last.count;
#pragma unroll
    for (int s = 0; s < kWideStages - 1; ++s) ask_weights(s, first + s, end);
    clear_sums();
    pdl_wait();
#pragma unroll
    for (int s = 0; s < kWideStages - 1; ++s) {
      ask_tokens(s, first + s, end);
      commit_copies();
    }
    Sums y = {};
    int taken = 0, asked = kWideStages - 1;
    int chain_end = first + stream_chain(args_.groups, chain).count;
#pragma unroll 1
    for (int group = first; group < end; ++group) {
      wait_copies<kWideStages - 2>();
      __syncthreads();  // all have copied this stage, and multiplied the one before
      ask_weights(asked, group + kWideStages - 1, end);
      ask_tokens(asked, group + kWideStages - 1, end);
      commit_copies();
      if (warp_ < tiles_.count) multiply(y, ring_ + taken * stage_bytes_, group);
      if (!kSums && group + 1 == chain_end) {
        add_to_sums(y, chain / (kStreamChains / 2));
        chain_end += stream_chain(args_.groups, ++chain).count;
      }
      asked = taken;
      taken = taken + 1 == kWideStages ? 0 : taken + 1;
    }
    if (!kSums) finish();
  }

 private:
  // In a stage.
  __device__ __forceinline__ int tokens_at() const { return tiles_.count * kWideTileBytes; }

  // Every warp its row tile's.
  __device__ __forceinline__ void ask_weights(int slot, int group, int end) const {
    if (group >= end || warp_ >= tiles_.count) return;
    const int64_t from = int64_t{tiles_.first + warp_} * args_.groups + group;
    const uint32_t to = ring_ + slot * stage_bytes_ + warp_ * kWideTileBytes + lane_ * 16;
    const uint8_t* codes = args_.w.codes + from * kTileBytes + lane_ * 16;
#pragma unroll
    for (int c = 0; c < 3; ++c) copy_async(to + c * 512, codes + c * 512, policy_);
    if (lane_ < 2) {
      copy_async(to + kTileBytes, args_.w.scales + from * kTileRows + lane_ * 8, policy_);
    }
  }

  // Of tokens past m the last one again. In the rows of odd tokens chunks change places in pairs,
  // so that the lanes of a fragment meet no bank twice.
  __device__ __forceinline__ void ask_tokens(int slot, int group, int end) const {
    if (group >= end) return;
    static_assert(kWideTokens * kGroupSize == kWideThreads * 16);
    const uint32_t to = ring_ + slot * stage_bytes_ + tokens_at();
    const int token = static_cast<int>(threadIdx.x / 8), chunk = static_cast<int>(threadIdx.x % 8);
    const int64_t from = int64_t{min(token, args_.m - 1)} * args_.groups + group;
    copy_async(to + token * kGroupSize + (chunk ^ (token & 1)) * 16,
               args_.x.codes + from * kGroupSize + chunk * 16);
    if (threadIdx.x < kWideTokens / 4) {
      const int four = min(static_cast<int>(threadIdx.x), (args_.m - 1) / 4);
      copy_async(to + kCodeBytes + threadIdx.x * 16,
                 args_.x.scales + group * args_.x.scale_stride + four * 4);
    }
  }

  __device__ __forceinline__ Tokens load_tokens(uint32_t from) const {
    Tokens x;
    const int token = lane_ / 4;
    const uint32_t codes = from + token * kGroupSize + ((lane_ % 4 * 2) ^ (token & 1)) * 16;
    const uint32_t scales = from + kCodeBytes + lane_ % 4 * 8;
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      x.codes[c][0] = load_shared_words(codes + c * kTokenTile * kGroupSize);
      x.codes[c][1] = load_shared_words((codes ^ 16) + c * kTokenTile * kGroupSize);
      x.scales[c] = load_shared_pair(scales + c * kTokenTile * 4);
    }
    return x;
  }

  __device__ __forceinline__ void multiply(Sums& y, uint32_t stage, int group) const {
    const Tokens x = load_tokens(stage + tokens_at());
    const uint32_t at = stage + warp_ * kWideTileBytes;
    const TileWords w = load_tile(at, lane_);
    const TileScales scales = load_tile_scales(at + kTileBytes, lane_);
    int32_t sum[kTokenTiles][4];
    multiply_tile(sum, w, x);
    if constexpr (kSums) {
      store_group_sums(args_, sum, tiles_.first + warp_, group, lane_);
    } else {
      add_scaled(y, sum, scales, x);
    }
  }

  __device__ __forceinline__ uint32_t sums_at(int half, int c) const {
    return sums_ + half * kHalfBytes + c * (kWideThreads * 16);
  }

  __device__ __forceinline__ void clear_sums() const {
    const float zeros[4] = {};
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      store_shared_floats(sums_at(0, c), zeros);
      store_shared_floats(sums_at(1, c), zeros);
    }
  }

  // The end of a chain.
  __device__ __forceinline__ void add_to_sums(Sums& y, int half) const {
#pragma unroll
    for (int c = 0; c < kTokenTiles; ++c) {
      float sum[4];
      load_shared_floats(sum, sums_at(half, c));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i] += y[c][i];
        y[c][i] = 0.0f;
      }
      store_shared_floats(sums_at(half, c), sum);
    }
  }

  // Of the block of the cluster that has it.
  __device__ __forceinline__ void load_half(float (&sum)[4], int half, int c) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (args_.split == 2) {
      load_cluster_floats(sum, cluster_address(sums_at(half, c), half));
      return;
    }
#endif
    load_shared_floats(sum, sums_at(half, c));
  }

  __device__ __forceinline__ void store(int c) const {
    float low[4], high[4];
    load_half(low, 0, c);
    load_half(high, 1, c);
    const int row = (tiles_.first + warp_) * kTileRows + lane_ / 4;
    const int token = c * kTokenTile + lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      close_element(args_, open_element(args_, row + 8 * (i / 2), token + i % 2, true),
                    low[i] + high[i]);
    }
  }

  // Each block of a cluster stores some tokens.
  __device__ __forceinline__ void finish() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (args_.split == 2) cluster_sync();
#endif
#pragma unroll 1
    for (int c = rank_; c < kTokenTiles && warp_ < tiles_.count; c += args_.split) store(c);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (args_.split == 2) cluster_sync();  // the other has read this one's
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

template <bool kSums>
__global__ void __launch_bounds__(kWideThreads, kWideBlocks)
    sm80_w6ax_stream_gemm_wide(const __grid_constant__ StreamArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  WideBlock<kSums>(args, shared_address(shared)).run();
}

}  // namespace

bool launch_stream_wide(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  const Device& device = current_device();
  if (config.tiles != kWideTiles || config.stages != kWideStages) return false;
  if (args.m > kWideTokens || !wide_fits(config, device)) return false;
  const int clusters = wide_clusters(args.row_tiles, config, device);
  const auto shared =
      static_cast<size_t>(wide_shared_bytes((args.row_tiles + clusters - 1) / clusters));
  auto* kernel =
      args.sums == nullptr ? sm80_w6ax_stream_gemm_wide<false> : sm80_w6ax_stream_gemm_wide<true>;
  prefer_shared_memory(reinterpret_cast<const void*>(kernel), kWideBlocks,
                       static_cast<size_t>(wide_shared_bytes(kWideTiles)));
  const dim3 blocks(static_cast<unsigned>(clusters * config.split));
  const Grid grid(blocks, config.split == 1 ? 0 : static_cast<unsigned>(config.split));
  launch_kernel(kernel, grid, dim3(kWideThreads), shared, launch, args);
  return true;
}

}  // namespace flexq_kernels::gpu
