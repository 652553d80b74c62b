// The kernel of the weight-only family: that of the stream family for few tokens, with floats. A
// block has kTiles row tiles, and its warp c all groups of chain c, a stage of all row tiles at a
// time (stream_gemm_stages.cuh). Blocks are small and many, several per multiprocessor, and no warp
// waits for another before the end of its chain.
//
//   weights of warp c   | group g of all tiles        | group g + 1 …      kStages under way
//   tokens of warp c    | part 0 | part 1 | … of g    | part 0 …           one part under way
//
// A group of tokens takes twice the registers that int8 would, so it is cut into parts of one or
// two steps of 32 k. They come through L1, where the other blocks of the multiprocessor find them.
//
// Before a block waits for the kernel in front it has asked for its first stages: weights never
// change.
#pragma once

#include <type_traits>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/stream_gemm_finish.cuh"
#include "flexq_kernels/gpu/stream_gemm_stages.cuh"
#include "flexq_kernels/gpu/weight_only_gemm_args.h"
#include "flexq_kernels/gpu/weight_only_gemm_tokens.cuh"

namespace flexq_kernels::gpu {

constexpr int kWeightOnlyThreads = kStreamChains * 32;

// An instance. kBlocks: at least so many on a multiprocessor; kQuads: see TokenPartReader.
template <StreamKernel kKernel, int kTokenTilesOf, int kTilesOf, int kStagesOf, int kBlocksOf,
          bool kQuadsOf = true>
struct WeightOnlyShape {
  static constexpr int kTokenTiles = kTokenTilesOf, kTiles = kTilesOf, kStages = kStagesOf;
  static constexpr int kBlocks = kBlocksOf;
  static constexpr int kSteps = kTokenTiles <= 2 ? 2 : 1;  // of a part

  using Stages = std::conditional_t<kKernel == StreamKernel::kDirect,
                                    RegisterStages<kTiles, kStages>, SharedStages<kTiles, kStages>>;
  using Reader = TokenPartReader<kTokenTiles, kSteps, kQuadsOf>;
  using Finish = StreamFinish<kTokenTiles, kTiles>;
  using Sums = float[kTiles][kTokenTiles][4];
  static constexpr size_t kShared =
      Finish::kPartialBytes + size_t{kStreamChains} * Stages::kWarpBytes;

  static bool fits(const WeightOnlyArgs& args, const WeightOnlyConfig& config) {
    return config.kernel == kKernel && config.tiles == kTiles && config.stages == kStages &&
           args.stream.m <= Finish::kTokens && (args.k % 4 == 0) == kQuadsOf &&
           kShared <= current_device().shared_per_block;
  }
};

// y += scale * the product of a group, its weights in slot s.
template <typename T, typename Shape, typename Part>
__device__ __forceinline__ void multiply_group(typename Shape::Sums& y,
                                               const typename Shape::Stages& stages, int s,
                                               typename Shape::Reader& reader, Part& next) {
  TileWords w[Shape::kTiles];
#pragma unroll
  for (int r = 0; r < Shape::kTiles; ++r) w[r] = stages.tile(s, r);
  typename Shape::Sums sum = {};
#pragma unroll
  for (int step = 0; step < kStepsPerGroup; step += Shape::kSteps) {
    const Part x = next;
    reader.advance();
    next = reader.load();  // after the last of the chain: of the next chain, or nothing past k
#pragma unroll
    for (int r = 0; r < Shape::kTiles; ++r) multiply_part<T>(sum[r], w[r], step, x);
    // Or the compiler would load parts that there are no registers for.
    if constexpr (Shape::kTokenTiles >= 4) __syncwarp();
  }
#pragma unroll
  for (int r = 0; r < Shape::kTiles; ++r) add_scaled_floats(y[r], sum[r], stages.scales(s, r));
}

// y += the products of a chain of groups, of which the first stages have been asked for.
template <typename T, typename Shape>
__device__ __forceinline__ void multiply_chain(typename Shape::Sums& y,
                                               typename Shape::Stages& stages,
                                               typename Shape::Reader reader, int groups) {
  constexpr int kStages = Shape::kStages, kUnder = Shape::Stages::kUnder;
  if (groups == 0) return;
  auto next = reader.load();
#pragma unroll 1
  for (;;) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      // The branch also keeps the compiler from multiplying all stages before it loads the first.
      if (groups == 0) return;
      --groups;
      stages.wait();
      if constexpr (kUnder < kStages) stages.ask((s + kStages - 1) % kStages);
      multiply_group<T, Shape>(y, stages, s, reader, next);
      if constexpr (kUnder == kStages) stages.ask(s);
    }
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(kWeightOnlyThreads, Shape::kBlocks)
    sm80_w6a16_weight_only_gemm(const __grid_constant__ WeightOnlyArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int first_tile = static_cast<int>(blockIdx.x) * Shape::kTiles;
  const StreamRange chain = stream_chain(args.stream.groups, warp);
  const uint32_t ring = shared_address(shared) +
                        static_cast<uint32_t>(Shape::Finish::kPartialBytes) +
                        static_cast<uint32_t>(warp * Shape::Stages::kWarpBytes);
  typename Shape::Stages stages(args.stream, first_tile, chain, ring, lane);
#pragma unroll
  for (int s = 0; s < Shape::Stages::kUnder; ++s) stages.ask(s);
  pdl_wait();
  typename Shape::Sums y = {};
  const typename Shape::Reader reader(args.x, args.stream.m, args.k, chain.first, lane);
  multiply_chain<T, Shape>(y, stages, reader, chain.count);
  typename Shape::Finish(args.stream, reinterpret_cast<float*>(shared), warp, lane)
      .run(y, first_tile, min(Shape::kTiles, args.stream.row_tiles - first_tile));
}

// Of the instances the first that fits. False: there is none.
template <typename T, typename... Shapes>
struct WeightOnlyInstances {
  static bool launch(const WeightOnlyArgs& args, const WeightOnlyConfig& config,
                     const Launch& how) {
    return (launch_if<Shapes>(args, config, how) || ...);
  }

 private:
  template <typename Shape>
  static bool launch_if(const WeightOnlyArgs& args, const WeightOnlyConfig& config,
                        const Launch& how) {
    if (!Shape::fits(args, config)) return false;
    const int blocks = (args.stream.row_tiles + Shape::kTiles - 1) / Shape::kTiles;
    auto* kernel = sm80_w6a16_weight_only_gemm<T, Shape>;
    prefer_shared_memory(reinterpret_cast<const void*>(kernel), Shape::kBlocks, Shape::kShared);
    launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kWeightOnlyThreads),
                  Shape::kShared, how, args);
    return true;
  }
};

// In order of tokens: the first that fits is the cheapest. weight_only_configs() knows the list.
template <int kTokenTiles, int kStages, int kBlocks>
using Singles = WeightOnlyShape<StreamKernel::kAsync, kTokenTiles, 1, kStages, kBlocks, false>;

template <typename T>
bool launch_weight_only(const WeightOnlyArgs& args, const WeightOnlyConfig& config,
                        const Launch& launch) {
  constexpr StreamKernel kDirect = StreamKernel::kDirect, kAsync = StreamKernel::kAsync;
  return WeightOnlyInstances<
      T, WeightOnlyShape<kDirect, 1, 1, 1, 4>, WeightOnlyShape<kDirect, 1, 1, 2, 3>,
      WeightOnlyShape<kAsync, 1, 1, 3, 4>, WeightOnlyShape<kAsync, 1, 1, 4, 4>,
      WeightOnlyShape<kAsync, 1, 2, 3, 2>, WeightOnlyShape<kDirect, 2, 1, 1, 3>,
      WeightOnlyShape<kAsync, 2, 1, 4, 3>, WeightOnlyShape<kAsync, 2, 2, 3, 2>,
      WeightOnlyShape<kAsync, 2, 4, 2, 1>, WeightOnlyShape<kAsync, 4, 1, 3, 2>,
      WeightOnlyShape<kAsync, 4, 2, 3, 1>, WeightOnlyShape<kAsync, 4, 4, 2, 1>,
      WeightOnlyShape<kAsync, 8, 1, 4, 1>, WeightOnlyShape<kAsync, 8, 2, 3, 1>, Singles<1, 4, 3>,
      Singles<2, 4, 3>, Singles<4, 3, 1>, Singles<8, 4, 1>>::launch(args, config, launch);
}

}  // namespace flexq_kernels::gpu
