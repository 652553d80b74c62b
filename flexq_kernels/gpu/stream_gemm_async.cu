// The stream family on sm_80 and later. Work is shared out as in stream_gemm_bulk.cu, without
// clusters: a block has an even share of whole row tiles, and its warp c all groups of chain c.
// Every warp copies its own tiles, a stage each, into a ring of its own, three 16-byte cp.async per
// lane and two for the scales, kStages - 1 of them under way:
//
//   warp c   | tile 0, group c | tile 1, group c | … | tile 0, group 8 + c | …
//
// so that no warp waits for another before the end of a pass. Shared memory is at most 99 KB, the
// most that sm_86 and sm_89 have.
#include <algorithm>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/stream_gemm_finish.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kAsyncThreads = kStreamWarps * 32;
constexpr int kAsyncStageBytes = kTileBytes + kTileScaleBytes;

struct AsyncMeet {
  __device__ __forceinline__ void before() const {}
  __device__ __forceinline__ void between() const { __syncthreads(); }
  __device__ __forceinline__ void after() const { __syncthreads(); }
};

template <int kTokenTiles, int kTiles, int kStages, bool kSums>
class AsyncWarp {
  using Tokens = TokenFragment<kTokenTiles>;
  using Finish = StreamFinish<kTokenTiles, 1, kTiles, 1>;
  // More tokens would not fit in the registers twice: they are loaded where they are used.
  static constexpr bool kTokensAhead = kTokenTiles <= 4;

 public:
  // ring: of this warp.
  __device__ __forceinline__ AsyncWarp(const StreamArgs& args, const StreamShare& share,
                                       uint32_t ring, int warp, int lane)
      : args_(args),
        share_(share),
        blocks_(stream_blocks(args.groups, warp)),
        ring_(ring),
        warp_(warp),
        lane_(lane),
        cursor_(share, blocks_) {}

  __device__ __forceinline__ void fill() {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) ask();
  }

  __device__ __forceinline__ void multiply(const Finish& finish) {
    const TokenReader<kTokenTiles> reader(args_.x, args_.m, args_.groups, 0, lane_);
    AsyncMeet meet;
    Tokens next;
    if (kTokensAhead && blocks_ > 0) next = reader.load(group(0));
    const int passes = share_.passes();
    for (int pass = 0; pass < passes; ++pass) {
      const StreamRange tiles = share_.pass(pass);
      float y[kTiles][kTokenTiles][4] = {};
#pragma unroll 1
      for (int block = 0; block < blocks_; ++block) {
        const Tokens x = kTokensAhead ? next : reader.load(group(block));
        if (kTokensAhead && (block + 1 < blocks_ || pass + 1 < passes)) {
          next = reader.load(group(block + 1 < blocks_ ? block + 1 : 0));
        }
        multiply_block(y, x, tiles, block);
      }
      if constexpr (!kSums) finish.run(y, tiles.first, tiles.count, meet);
    }
  }

 private:
  __device__ __forceinline__ int group(int block) const { return warp_ + block * kStreamChains; }

  static __device__ __forceinline__ void advance(uint32_t& place) {
    place = place + 1 == kStages ? 0 : place + 1;
  }

  // Starts the copies of the next stage. After the last an empty group of copies keeps the count.
  __device__ __forceinline__ void ask() {
    if (cursor_.left()) {
      const int64_t tile = int64_t{cursor_.tile()} * args_.groups + group(cursor_.block());
      const uint8_t* codes = args_.w.codes + tile * kTileBytes + lane_ * 16;
      const uint32_t stage = ring_ + asked_ * kAsyncStageBytes;
      const uint64_t policy = stream_once_policy();
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        copy_async(stage + c * 512 + lane_ * 16, codes + c * 512, policy);
      }
      if (lane_ < 2) {
        copy_async(stage + kTileBytes + lane_ * 16, args_.w.scales + tile * kTileRows + lane_ * 8,
                   policy);
      }
      advance(asked_);
      cursor_.advance();
    }
    commit_copies();
  }

  // One group of the row tiles of a pass.
  __device__ __forceinline__ void multiply_block(float (&y)[kTiles][kTokenTiles][4],
                                                 const Tokens& x, const StreamRange& tiles,
                                                 int block) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      if (r >= tiles.count) break;
      wait_copies<kStages - 2>();
      __syncwarp();  // for the scales; and all lanes have read the stage before, which is
                     // overwritten
      ask();
      const uint32_t stage = ring_ + taken_ * kAsyncStageBytes;
      advance(taken_);
      const TileWords w = load_tile(stage, lane_);
      const TileScales scales = load_tile_scales(stage + kTileBytes, lane_);
      int32_t sum[kTokenTiles][4];
      multiply_tile(sum, w, x);
      if constexpr (kSums) {
        store_group_sums(args_, sum, tiles.first + r, 0, group(block), lane_);
      } else {
        add_scaled(y[r], sum, scales, x);
      }
    }
  }

  const StreamArgs& args_;
  StreamShare share_;
  int blocks_;
  uint32_t ring_;
  int warp_, lane_;
  StreamCursor cursor_;
  uint32_t asked_ = 0, taken_ = 0;  // places of the ring
};

template <int kTokenTiles, int kTiles, int kStages, int kResident, bool kSums>
__global__ void __launch_bounds__(kAsyncThreads, kResident)
    sm80_w6ax_stream_gemm(const __grid_constant__ StreamArgs args) {
  using Finish = StreamFinish<kTokenTiles, 1, kTiles, 1>;
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const StreamShare share(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), args.row_tiles,
                          kTiles);
  const uint32_t ring = shared_address(shared) + warp * kStages * kAsyncStageBytes;
  auto* partial = reinterpret_cast<float*>(shared + kStreamWarps * kStages * kAsyncStageBytes);
  AsyncWarp<kTokenTiles, kTiles, kStages, kSums> self(args, share, ring, warp, lane);
  self.fill();
  pdl_wait();
  self.multiply(Finish{args, partial, warp, lane, 0});
}

// True if config and m fit the instance, after launching it.
template <int kTokenTiles, int kTiles, int kStages, int kResident>
bool launch_if(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  using Finish = StreamFinish<kTokenTiles, 1, kTiles, 1>;
  if (config.split != 1 || config.tiles != kTiles || config.stages != kStages) return false;
  if (args.m > Finish::kTokens) return false;
  constexpr size_t kShared =
      size_t{kStreamWarps} * kStages * kAsyncStageBytes + Finish::kPartialBytes;
  static_assert(kShared <= 99 * 1024);
  const int blocks = std::min(args.row_tiles, current_device().multiprocessors);
  const auto launch_one = [&](auto* kernel) {
    prefer_shared_memory(reinterpret_cast<const void*>(kernel));
    launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kAsyncThreads), kShared, launch,
                  args);
  };
  if (args.sums == nullptr) {
    launch_one(sm80_w6ax_stream_gemm<kTokenTiles, kTiles, kStages, kResident, false>);
  } else {
    launch_one(sm80_w6ax_stream_gemm<kTokenTiles, kTiles, kStages, 1, true>);
  }
  return true;
}

}  // namespace

// In order of tokens: the first that fits is the cheapest. stream_configs() knows the list.
bool launch_stream_async(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  return launch_if<1, 6, 6, 2>(args, config, launch) ||
         launch_if<2, 3, 6, 2>(args, config, launch) ||
         launch_if<4, 4, 5, 1>(args, config, launch) || launch_if<8, 2, 4, 1>(args, config, launch);
}

}  // namespace flexq_kernels::gpu
