// The stream family for few tokens. A block has kTiles row tiles, and its warp c all groups of
// chain c, a stage of all row tiles at a time (stream_gemm_stages.cuh):
//
//   warp c   | group g of all tiles | group g + 1 | … | kStages under way or multiplied
//
// Blocks are small and many, a handful per multiprocessor: while one adds its chains the others
// stream, and when it ends another starts. No warp waits for another before the end of its chain.
// The tokens of a group are loaded into registers for all row tiles, through L1, where the other
// blocks of the multiprocessor find them.
//
// Before a block waits for the kernel in front it has asked for its first stages: weights never
// change. So with programmatic launches blocks of the next GEMM keep the memory busy while the last
// ones of this one end.
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/stream_gemm_finish.cuh"
#include "flexq_kernels/gpu/stream_gemm_stages.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kNarrowThreads = kStreamChains * 32;

// Bytes of shared memory of a multiprocessor that the code is compiled for.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr int kSharedOfMultiprocessor = 228 * 1024;
#elif __CUDA_ARCH__ == 800
constexpr int kSharedOfMultiprocessor = 164 * 1024;
#else
constexpr int kSharedOfMultiprocessor = 100 * 1024;
#endif

// Registers are for so many blocks as there is shared memory for, and no more than are wanted.
constexpr int blocks_for_registers(int wanted, int shared_bytes) {
  const int fit = kSharedOfMultiprocessor / (shared_bytes + 1024);
  return fit < 1 ? 1 : fit < wanted ? fit : wanted;
}

template <StreamKernel kKernel, int kTiles, int kStages>
using NarrowStages =
    std::conditional_t<kKernel == StreamKernel::kDirect, RegisterStages<kTiles, kStages>,
                       SharedStages<kTiles, kStages>>;

// Of a block: the sums of its chains, and the rings of its warps.
template <StreamKernel kKernel, int kTokenTiles, int kTiles, int kStages>
constexpr int kNarrowShared = static_cast<int>(StreamFinish<kTokenTiles, kTiles>::kPartialBytes) +
                              kStreamChains * NarrowStages<kKernel, kTiles, kStages>::kWarpBytes;

template <typename Stages, int kTokenTiles, int kTiles, int kStages, bool kSums>
class NarrowWarp {
  using Tokens = TokenFragment<kTokenTiles>;
  using Sums = float[kTiles][kTokenTiles][4];
  // Two groups of more tokens would take the registers of another block.
  static constexpr bool kTokensAhead = kTokenTiles == 1;

 public:
  __device__ __forceinline__ NarrowWarp(const StreamArgs& args, uint32_t ring, int warp, int lane)
      : args_(args),
        first_tile_(static_cast<int>(blockIdx.x) * kTiles),
        lane_(lane),
        // Of one lane for all: then the compiler knows that a warp has one chain, and counts it
        // once.
        chain_(stream_chain(args.groups, __shfl_sync(0xffffffffu, warp, 0))),
        stages_(args, first_tile_, chain_, ring, lane) {}

  __device__ __forceinline__ void fill() {
#pragma unroll
    for (int s = 0; s < Stages::kUnder; ++s) stages_.ask(s);
  }

  __device__ __forceinline__ void multiply(Sums& y) {
    if (chain_.count == 0) return;
    TokenReader<kTokenTiles> reader(args_.x, args_.m, args_.groups, chain_.first, lane_);
    Tokens next;
    if constexpr (kTokensAhead) next = reader.load();
    int left = chain_.count;
#pragma unroll 1
    do {
#pragma unroll
      for (int s = 0; s < kStages; ++s) {
        // The branch also keeps the compiler from multiplying all stages before it loads the first.
        // Of the first slot the outer loop has it: so each slot's code is its own, and its words
        // are registers.
        if (s > 0 && left == 0) return;
        --left;
        if constexpr (kTokensAhead) reader.advance(left > 0);
        const Tokens x = kTokensAhead ? next : reader.load();
        if constexpr (kTokensAhead) {
          next = reader.load();
        } else {
          reader.advance(left > 0);
        }
        stages_.wait();
        if constexpr (Stages::kUnder < kStages) stages_.ask((s + kStages - 1) % kStages);
        multiply_stage(y, s, x, chain_.first + chain_.count - 1 - left);
        if constexpr (Stages::kUnder == kStages) stages_.ask(s);
      }
    } while (left > 0);
  }

 private:
  __device__ __forceinline__ void multiply_stage(Sums& y, int slot, const Tokens& x, int group) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      // Many tokens' sums take all registers: the next tile's words come behind them.
      if (r > 0 && kTokenTiles > 2) __syncwarp();
      const TileWords w = stages_.tile(slot, r);
      const TileScales scales = stages_.scales(slot, r);
      int32_t sum[kTokenTiles][4];
      multiply_tile(sum, w, x);
      if constexpr (kSums) {
        if (first_tile_ + r < args_.row_tiles) {
          store_group_sums(args_, sum, first_tile_ + r, group, lane_);
        }
      } else {
        add_scaled(y[r], sum, scales, x);
      }
    }
  }

  const StreamArgs& args_;
  int first_tile_, lane_;
  StreamRange chain_;
  Stages stages_;
};

template <StreamKernel kKernel, int kTokenTiles, int kTiles, int kStages, int kResident, bool kSums>
__global__ void __launch_bounds__(
    kNarrowThreads,
    blocks_for_registers(kResident, kNarrowShared<kKernel, kTokenTiles, kTiles, kStages>))
    sm80_w6ax_stream_gemm(const __grid_constant__ StreamArgs args) {
  using Finish = StreamFinish<kTokenTiles, kTiles>;
  using Stages = NarrowStages<kKernel, kTiles, kStages>;
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t ring = shared_address(shared) + Finish::kPartialBytes + warp * Stages::kWarpBytes;
  NarrowWarp<Stages, kTokenTiles, kTiles, kStages, kSums> self(args, ring, warp, lane);
  self.fill();
  pdl_wait();
  float y[kTiles][kTokenTiles][4] = {};
  self.multiply(y);
  const int first_tile = static_cast<int>(blockIdx.x) * kTiles;
  if constexpr (!kSums) {
    Finish(args, reinterpret_cast<float*>(shared), warp, lane)
        .run(y, first_tile, min(kTiles, args.row_tiles - first_tile));
  }
}

// True if config and m fit the instance, after launching it.
template <StreamKernel kKernel, int kTokenTiles, int kTiles, int kStages, int kResident>
bool launch_if(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  using Finish = StreamFinish<kTokenTiles, kTiles>;
  if (config.kernel != kKernel || config.tiles != kTiles || config.stages != kStages) return false;
  if (config.split != 1 || args.m > Finish::kTokens) return false;
  constexpr size_t kShared = kNarrowShared<kKernel, kTokenTiles, kTiles, kStages>;
  if (kShared > current_device().shared_per_block) return false;
  const int blocks = (args.row_tiles + kTiles - 1) / kTiles;
  const auto launch_one = [&](auto* kernel) {
    prefer_shared_memory(reinterpret_cast<const void*>(kernel), kResident, kShared);
    launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kNarrowThreads), kShared,
                  launch, args);
  };
  if (args.sums == nullptr) {
    launch_one(sm80_w6ax_stream_gemm<kKernel, kTokenTiles, kTiles, kStages, kResident, false>);
  } else {
    launch_one(sm80_w6ax_stream_gemm<kKernel, kTokenTiles, kTiles, kStages, 1, true>);
  }
  return true;
}

}  // namespace

// In order of tokens: the first that fits is the cheapest. stream_configs() knows the list.
bool launch_stream_narrow(const StreamArgs& args, const StreamConfig& config,
                          const Launch& launch) {
  constexpr StreamKernel kDirect = StreamKernel::kDirect, kAsync = StreamKernel::kAsync;
  return launch_if<kDirect, 1, 1, 1, 5>(args, config, launch) ||
         launch_if<kDirect, 1, 1, 2, 4>(args, config, launch) ||
         launch_if<kDirect, 1, 1, 3, 3>(args, config, launch) ||
         launch_if<kAsync, 1, 1, 3, 4>(args, config, launch) ||
         launch_if<kDirect, 2, 1, 1, 3>(args, config, launch) ||
         launch_if<kDirect, 2, 1, 2, 2>(args, config, launch) ||
         launch_if<kAsync, 2, 2, 3, 2>(args, config, launch) ||
         launch_if<kDirect, 4, 1, 2, 2>(args, config, launch) ||
         launch_if<kAsync, 4, 1, 3, 2>(args, config, launch) ||
         launch_if<kAsync, 4, 2, 3, 2>(args, config, launch);
}

}  // namespace flexq_kernels::gpu
