// The kernel of a whole decode step: one block on every multiprocessor, all at once (a cooperative
// launch). In each, two warps stream what the block reads through a ring in shared memory
// (stream.cuh), sixteen compute, op by op (normed_input.cuh, token_input.cuh, product.cuh,
// attention.cuh), and one finishes sums and passes results to other blocks as packets (finish.cuh,
// packets.cuh).
#pragma once

#include "ft/core/cuda_check.h"
#include "ft/kernels/launch.cuh"
#include "ft/step/attention.cuh"
#include "ft/step/finish.cuh"
#include "ft/step/product.cuh"
#include "ft/step/step_launch.h"
#include "ft/step/stream.cuh"

namespace flexq_ft::step {

constexpr int kStepThreads = kComputeThreads + 32 + kStreamWarps * 32;

// The residual stream of the first layer: rows of the embedding, shared out over all blocks.
template <typename T>
__device__ __forceinline__ void embed(const Place& place) {
  const Args& args = place.args;
  const int quads = args.hidden / 4;
  const uint32_t epoch = place.input_epoch();
  for (int i = static_cast<int>(blockIdx.x) * kComputeThreads + place.thread();
       i < args.tokens * quads; i += static_cast<int>(gridDim.x) * kComputeThreads) {
    const int token = i / quads, column = i % quads * 4;
    const int id = __ldg(args.ids + token), position = __ldg(args.positions + token);
    const bool learned = args.positional != nullptr;
    float x[4] = {};
    if (id >= 0 && id < args.vocab && (!learned || position < args.positional_rows)) {
      const auto row = [&](const void* table, int64_t at) {
        return __ldg(reinterpret_cast<const uint2*>(static_cast<const T*>(table) +
                                                    at * args.hidden + column));
      };
      unpack_quad<T>(x, row(args.embedding, id));
      if (learned) {
        float offset[4];
        unpack_quad<T>(offset, row(args.positional, position));
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = __fadd_rn(x[e], offset[e]);
      }
    }
    const uint2 quad = pack_quad<T>(x);
    store_packets(args.stream_in + (static_cast<int64_t>(token) * args.hidden + column) / 2, quad.x,
                  quad.y, epoch);
  }
}

// Brings an op's description to shared memory; arrived behind copies_arrived() and a barrier.
__device__ __forceinline__ void fetch_op(const Place& place, int index) {
  constexpr int kPieces = sizeof(Op) / 16;
  if (place.warp != 0 || place.lane >= kPieces || index > kLayerOps * place.args.layers) return;
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(place.at(
          place.args.map.ops + (index & 1) * static_cast<int>(sizeof(Op)) + place.lane * 16)),
      "l"(reinterpret_cast<const uint4*>(place.args.ops + index) + place.lane)
      : "memory");
}

__device__ __forceinline__ void copies_arrived() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Hints of when the packets of an op are worth looking for; the attention, which needs few, looks
// at once. Those of one token are not many either: they are looked for when a sixteenth is still to
// come, so that the last ones' way here and the first look's overlap.
__device__ __forceinline__ void await_op(const Place& place, int index, int kind) {
  if (kind == kAttention) return;
  const Args& args = place.args;
  const bool begins = kind == kQkv || kind == kHead;  // else it needs results of its own layer
  const int from = begins ? kDown : kind == kO ? kAttention : kind == kUp ? kO : kUp;
  const int rows = from == kUp ? args.inter * (args.gated ? 2 : 1) : args.hidden;
  const int each = from == kAttention
                       ? args.tokens * args.kv_heads
                       : min((rows + kStageRows - 1) / kStageRows, static_cast<int>(gridDim.x));
  const int all = (index / kLayerOps + (begins ? 0 : 1)) * each;
  const int late = args.tokens == 1 ? min(each / 16, all) : 0;
  await_arrivals(args, kArrived + from, static_cast<uint32_t>(all - late), index);
}

template <typename T, Format kFormat, int kTokens>
__device__ __forceinline__ void compute(const Place& start, const RingPlace& ring_place) {
  const Args& args = start.args;
  RingReader ring(ring_place, start.team());
  PartialSums partial(args, start.base);
  Pair<kTokens> pair(args, start.base);
  embed<T>(start);
  fetch_op(start, 0);
  for (int index = 0;; ++index) {
    const int last = kLayerOps * anew(args.layers);  // not kept in a register
    if (index > last) break;
    const int kind = index == last ? kHead : index % kLayerOps;
    const Place place = start.afresh();
    mark(place, index, kBegun);
    copies_arrived();
    if (kFormat == Format::kW8A8 && place.warp == kWarps - 1 && place.lane < kMaxTokens) {
      store_shared_word(place.at(args.map.maxima + place.lane * 4), 0);
    }
    const bool works = kind == kAttention || has_work(place.planned(index));
    if (works && kind != kAttention) pair.ready(index);
    if (works && place.thread() == 0) await_op(place, index, kind);
    __syncwarp();
    compute_barrier();
    fetch_op(place, index + 1);
    mark(place, index, kAwaited);
    if (kind == kAttention) {
      if (args.head_dim == 128) {
        AttentionOp<T, 128>(place, index).run(ring);
      } else {
        AttentionOp<T, 64>(place, index).run(ring);
      }
    } else if (kFormat != Format::kFloat && kind == kHead) {
      ProductOp<T, Format::kFloat, kTokens>(place, index, kind).run(ring, partial, pair);
    } else {
      ProductOp<T, kFormat, kTokens>(place, index, kind).run(ring, partial, pair);
    }
    mark(place, index, kDone);
  }
}

template <typename T, Format kFormat, int kTokens>
__device__ __forceinline__ void finish(const Place& place) {
  PartialSums sums(place.args, place.base);
  const int last = kLayerOps * place.args.layers;
#pragma unroll 1
  for (int index = 0; index <= last; ++index) {
    const int kind = index == last ? kHead : index % kLayerOps;
    if (kind == kAttention) continue;
    if (kFormat != Format::kFloat && kind == kHead) {
      FinishOp<T, Format::kFloat, kTokens>(place, index, kind).run(sums);
    } else {
      FinishOp<T, kFormat, kTokens>(place, index, kind).run(sums);
    }
  }
}

// Of the computing warps and the finishing one, at the end.
__device__ __forceinline__ void last_barrier() {
  asm volatile("bar.sync 2, %0;" ::"n"(kComputeThreads + 32) : "memory");
}

// The last block to end sets everything back and begins the next epoch.
__device__ __forceinline__ void end_step(const Args& args, uint32_t step) {
  __threadfence();
  uint32_t* const ended = args.counters + kEnded * kCounterWords;
  if (atomicAdd(ended, 1u) != gridDim.x - 1) return;
  for (int kind = 0; kind < kLayerOps; ++kind) args.counters[(kArrived + kind) * kCounterWords] = 0;
  *ended = 0;
  args.counters[kStep * kCounterWords] = step + 1;
}

template <typename T, Format kFormat, int kTokens>
__global__ void __launch_bounds__(kStepThreads, 1) step_kernel(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const RingPlace ring{args, base};
  auto* const plan = reinterpret_cast<uint32_t*>(shared + args.map.plan);
  const int ops = kLayerOps * args.layers + 1;
  if (threadIdx.x == 0) {
    PartialSums(args, base).make();
    Pair<kTokens>(args, base).make();
    make_ring(ring);
  }
  for (int i = static_cast<int>(threadIdx.x); i < ops; i += kStepThreads) {
    const uint32_t* const planned = args.plan + static_cast<int64_t>(i) * gridDim.x;
    plan[i] = __ldg(planned + blockIdx.x);
    if (args.paired && has_work(__ldg(planned + (blockIdx.x ^ 1)))) plan[i] |= kPeerWorks;
  }
  AttentionUnits(args).list(args);
  const uint32_t step = __ldcg(args.counters + kStep * kCounterWords);
  if (threadIdx.x == 0) {
    store_shared_word(base + static_cast<uint32_t>(args.map.epoch),
                      step * static_cast<uint32_t>(args.layers + 1));
  }
  __syncthreads();
  const bool paired = kTokens > 1 && args.paired;
  if (paired) flexq_kernels::gpu::cluster_sync_relaxed();
  constexpr int kFinishWarp = kWarps, kFirstStreamWarp = kWarps + 1;
  const Place place{args, base, static_cast<int>(threadIdx.x / 32),
                    static_cast<int>(threadIdx.x % 32)};
  if (place.warp >= kFirstStreamWarp) {
    Streamer<T, kFormat>(args, ring, place.warp - kFirstStreamWarp).run(plan);
  } else if (place.warp == kFinishWarp) {
    finish<T, kFormat, kTokens>(place);
    last_barrier();
    if (place.lane == 0) end_step(args, step);
  } else {
    compute<T, kFormat, kTokens>(place, ring);
    last_barrier();
  }
  __syncwarp();
  // The peer may still write here.
  if (paired) flexq_kernels::gpu::cluster_sync_relaxed();
#endif
}

// How a kernel is launched. The attributes are its own: it is not copied.
struct StepConfig {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2];

  StepConfig(int blocks, int shared_bytes, bool paired, Stream stream) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kStepThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream.handle);
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {2, 1, 1};
    config.attrs = attributes;
    config.numAttrs = paired ? 2 : 1;
  }
  StepConfig(const StepConfig&) = delete;
  StepConfig& operator=(const StepConfig&) = delete;
};

template <typename T, Format kFormat, int kTokens>
void launch_step_as(const Args& args, int blocks, Stream stream) {
  auto* const kernel = &step_kernel<T, kFormat, kTokens>;
  // As much for every batch: captured launches of one must not lower what another needs.
  gpu::allow_shared_memory(kernel, static_cast<size_t>(args.map.block_bytes));
  const StepConfig made(blocks, args.map.bytes, kTokens > 1 && args.paired, stream);
  gpu::check_launch(cudaLaunchKernelEx(&made.config, kernel, args),
                    reinterpret_cast<const void*>(kernel), made.config);
  full_edge(stream);  // what follows waits for all of it
}

template <typename T, Format kFormat>
bool takes_pairs_as(int shared_bytes, int blocks) {
  auto* const kernel = &step_kernel<T, kFormat, kMaxTokens>;
  if (blocks % 2 != 0) return false;
  gpu::allow_shared_memory(kernel, static_cast<size_t>(shared_bytes));
  const StepConfig made(blocks, shared_bytes, true, Stream{});
  int clusters = 0;  // at the same time
  FLEXQ_FT_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &made.config));
  return 2 * clusters >= blocks;
}

// run, with a value of the compute type.
template <typename Run>
auto with_step_type(DataType dtype, const Run& run) {
  if (dtype == DataType::kFp16) return run(__half{});
  FLEXQ_FT_CHECK_EQ(dtype, DataType::kBf16, "compute type of a step");
  return run(__nv_bfloat16{});
}

template <Format kFormat>
void launch_step_of(DataType dtype, const Args& args, int blocks, Stream stream) {
  with_step_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    if (args.tokens == 1) {
      launch_step_as<T, kFormat, 1>(args, blocks, stream);
    } else {
      launch_step_as<T, kFormat, kMaxTokens>(args, blocks, stream);
    }
  });
}

template <Format kFormat>
bool takes_pairs_of(DataType dtype, int shared_bytes, int blocks) {
  return with_step_type(dtype, [&](auto tag) {
    return takes_pairs_as<decltype(tag), kFormat>(shared_bytes, blocks);
  });
}

}  // namespace flexq_ft::step
