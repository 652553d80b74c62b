// The stream family for more tokens, up to 64. What x costs the L2 cache decides: 128 m bytes per
// group and block, beside 1568 of each row tile. So a block has many row tiles, an even share of
// all, works through k once, and its warps share both operands in shared memory:
//
//                    | row tiles 0 … R - 1 of the block | tokens, scales |      a stage: kGroups of
//                    k
//   warp (part, i)   multiplies tiles i, i + kRowWarps … with the 32 tokens of its part
//
// Stages travel through a ring, copied by all warps, kStages - 1 of them under way. A warp has all
// of k, one chain after the other: at the end of each its sums are added to those of the chains
// before, which wait in shared memory, every thread's own.
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

template <int kParts, int kRowWarps, int kTiles, int kGroups, int kStages>
struct WideShape {
  static constexpr int kThreads = kParts * kRowWarps * 32;
  static constexpr int kTokens = kParts * kPartTokens;
  static constexpr int kRowTiles = kRowWarps * kTiles;  // of a block, at most
  static constexpr int kCodeBytes = kTokens * kGroupSize;
  static constexpr int kTokenBytes = kCodeBytes + kTokens * static_cast<int>(sizeof(float));
  static constexpr int kTotalBytes = kThreads * kTiles * kPartTiles * 16;

  // A group of a stage: weights, their scales, tokens, their scales.
  FLEXQ_HOST_DEVICE static constexpr int group_bytes(int row_tiles) {
    return row_tiles * (kTileBytes + kTileScaleBytes) + kTokenBytes;
  }
  static constexpr size_t shared_bytes(int row_tiles) {
    return size_t{kStages} * kGroups * static_cast<size_t>(group_bytes(row_tiles)) + kTotalBytes;
  }
};

template <int kParts, int kRowWarps, int kTiles, int kGroups, int kStages, bool kSums>
class WideBlock {
  using Shape = WideShape<kParts, kRowWarps, kTiles, kGroups, kStages>;
  using Tokens = TokenFragment<kPartTiles>;
  static constexpr int kWarps = kParts * kRowWarps;

 public:
  __device__ __forceinline__ WideBlock(const StreamArgs& args, uint32_t shared)
      : args_(args),
        tiles_(EvenSplit(args.row_tiles, static_cast<int>(gridDim.x))
                   .part(static_cast<int>(blockIdx.x))),
        warp_(static_cast<int>(threadIdx.x / 32)),
        lane_(static_cast<int>(threadIdx.x % 32)),
        group_bytes_(Shape::group_bytes(tiles_.count)),
        totals_(shared + threadIdx.x * 16),
        ring_(shared + Shape::kTotalBytes),
        policy_(stream_once_policy()) {}

  __device__ __forceinline__ void run() {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) ask_weights(s, s);
    pdl_wait();
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      ask_tokens(s, s);
      commit_copies();
    }
    float y[kTiles][kPartTiles][4] = {};
    const int stages = (args_.groups + kGroups - 1) / kGroups;
    int taken = 0, asked = kStages - 1, chain = 0;
    int chain_end = stream_chain(args_.groups, 0).count;
#pragma unroll 1
    for (int i = 0; i < stages; ++i) {
      wait_copies<kStages - 2>();
      __syncthreads();  // all have copied this stage, and multiplied the one before
      ask_weights(asked, i + kStages - 1);
      ask_tokens(asked, i + kStages - 1);
      commit_copies();
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int group = i * kGroups + g;
        if (group >= args_.groups) break;
        multiply_group(y, at(taken, g), group);
        if (!kSums && group + 1 == chain_end) {
          add_chain(y, chain > 0, chain_end < args_.groups);
          chain_end += stream_chain(args_.groups, ++chain).count;
        }
      }
      asked = taken;
      taken = taken + 1 == kStages ? 0 : taken + 1;
    }
    if (!kSums) store(y);
  }

 private:
  __device__ __forceinline__ uint32_t at(int slot, int g) const {
    return ring_ + (slot * kGroups + g) * group_bytes_;
  }
  // In a group of a stage.
  __device__ __forceinline__ int tokens_at() const {
    return tiles_.count * (kTileBytes + kTileScaleBytes);
  }
  __device__ __forceinline__ int part() const { return warp_ / kRowWarps; }
  // Of the block's row tiles.
  __device__ __forceinline__ int tile(int t) const { return warp_ % kRowWarps + t * kRowWarps; }

  __device__ __forceinline__ void ask_weights(int slot, int stage) const {
#pragma unroll 1
    for (int r = warp_; r < tiles_.count; r += kWarps) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int group = stage * kGroups + g;
        if (group >= args_.groups) break;
        const int64_t from = int64_t{tiles_.first + r} * args_.groups + group;
        const uint32_t to = at(slot, g) + r * (kTileBytes + kTileScaleBytes) + lane_ * 16;
        const uint8_t* codes = args_.w.codes + from * kTileBytes + lane_ * 16;
#pragma unroll
        for (int c = 0; c < 3; ++c) copy_async(to + c * 512, codes + c * 512, policy_);
        if (lane_ < 2) {
          copy_async(to + kTileBytes, args_.w.scales + from * kTileRows + lane_ * 8, policy_);
        }
      }
    }
  }

  // Of tokens past m the last one again. Chunks of neighbouring tokens change places in pairs, so
  // that the lanes of a fragment meet no bank twice.
  __device__ __forceinline__ void ask_tokens(int slot, int stage) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int group = stage * kGroups + g;
      if (group >= args_.groups) break;
      const uint32_t to = at(slot, g) + tokens_at();
#pragma unroll
      for (int j = 0; j < Shape::kTokens * 8 / Shape::kThreads; ++j) {
        const int i = static_cast<int>(threadIdx.x) + j * Shape::kThreads;
        const int token = i / 8, chunk = i % 8;
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

  __device__ __forceinline__ void multiply_group(float (&y)[kTiles][kPartTiles][4], uint32_t from,
                                                 int group) const {
    if (tile(0) >= tiles_.count) return;
    const Tokens x = load_tokens(from + tokens_at());
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (tile(t) >= tiles_.count) break;
      const uint32_t at = from + tile(t) * (kTileBytes + kTileScaleBytes);
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

  // The end of a chain: its sums and those before. The last stay in registers.
  __device__ __forceinline__ void add_chain(float (&y)[kTiles][kPartTiles][4], bool before,
                                            bool more) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int c = 0; c < kPartTiles; ++c) {
        const uint32_t total = totals_ + (t * kPartTiles + c) * Shape::kThreads * 16;
        if (before) {
          const uint4 v = load_shared_words(total);
          y[t][c][0] = __uint_as_float(v.x) + y[t][c][0];
          y[t][c][1] = __uint_as_float(v.y) + y[t][c][1];
          y[t][c][2] = __uint_as_float(v.z) + y[t][c][2];
          y[t][c][3] = __uint_as_float(v.w) + y[t][c][3];
        }
        if (!more) continue;
        store_shared_floats(total, y[t][c]);
#pragma unroll
        for (float& v : y[t][c]) v = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void store(const float (&y)[kTiles][kPartTiles][4]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (tile(t) >= tiles_.count) break;
      const int row = (tiles_.first + tile(t)) * kTileRows + lane_ / 4;
#pragma unroll
      for (int c = 0; c < kPartTiles; ++c) {
        const int token = part() * kPartTokens + c * kTokenTile + lane_ % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          close_element(args_, open_element(args_, row + 8 * (i / 2), token + i % 2, true),
                        y[t][c][i]);
        }
      }
    }
  }

  const StreamArgs& args_;
  StreamRange tiles_;
  int warp_, lane_;
  int group_bytes_;
  uint32_t totals_, ring_;
  uint64_t policy_;
};

template <int kParts, int kRowWarps, int kTiles, int kGroups, int kStages, int kResident,
          bool kSums>
__global__ void __launch_bounds__(kParts * kRowWarps * 32, kResident)
    sm80_w6ax_stream_gemm_wide(const __grid_constant__ StreamArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  WideBlock<kParts, kRowWarps, kTiles, kGroups, kStages, kSums>(args, shared_address(shared)).run();
}

// True if config and m fit the instance, after launching it.
template <int kParts, int kRowWarps, int kTiles, int kGroups, int kStages, int kResident>
bool launch_if(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  using Shape = WideShape<kParts, kRowWarps, kTiles, kGroups, kStages>;
  if (config.tiles != Shape::kRowTiles || config.stages != kStages) return false;
  if (args.m > Shape::kTokens) return false;
  const int least = (args.row_tiles + Shape::kRowTiles - 1) / Shape::kRowTiles;
  const int wanted = std::max(1, config.blocks) * current_device().multiprocessors;
  const int blocks = std::max(least, std::min(wanted, args.row_tiles));
  const size_t shared = Shape::shared_bytes((args.row_tiles + blocks - 1) / blocks);
  if (shared > current_device().shared_per_block) return false;
  const auto launch_one = [&](auto* kernel) {
    prefer_shared_memory(reinterpret_cast<const void*>(kernel), kResident,
                         current_device().shared_per_multiprocessor);
    launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), shared,
                  launch, args);
  };
  if (args.sums == nullptr) {
    launch_one(
        sm80_w6ax_stream_gemm_wide<kParts, kRowWarps, kTiles, kGroups, kStages, kResident, false>);
  } else {
    launch_one(sm80_w6ax_stream_gemm_wide<kParts, kRowWarps, kTiles, kGroups, kStages, 1, true>);
  }
  return true;
}

}  // namespace

// In order of tokens: the first that fits is the cheapest. stream_configs() knows the list.
bool launch_stream_wide(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  return launch_if<1, 4, 1, 2, 4, 2>(args, config, launch) ||
         launch_if<1, 8, 1, 1, 5, 2>(args, config, launch) ||
         launch_if<1, 8, 2, 1, 5, 1>(args, config, launch) ||
         launch_if<2, 4, 1, 2, 4, 1>(args, config, launch) ||
         launch_if<2, 4, 2, 1, 5, 1>(args, config, launch) ||
         launch_if<2, 8, 2, 1, 4, 1>(args, config, launch);
}

}  // namespace flexq_kernels::gpu
