#include "tests/cpp/early_reads.h"

#include "ft/kernels/launch.cuh"

namespace flexq_test {

namespace {

using flexq_ft::gpu::launch;
using flexq_ft::gpu::pdl_launch_dependents;
using flexq_ft::gpu::pdl_wait;

constexpr int kClocks = 10000;

__global__ void count_step(EarlyReads* state) {
  pdl_launch_dependents();
  pdl_wait();
  state->copy = ++state->step;
  state->ended = 0;
}

__global__ void begin_step(EarlyReads* state) {
  pdl_launch_dependents();
  pdl_wait();
  const long long start = clock64();
  while (clock64() - start < kClocks) {
  }
  *const_cast<volatile int32_t*>(&state->ended) = 1;
}

// The second read leaves the line in the L1, where the next step's first one must not find it.
__global__ void read_step(EarlyReads* state) {
  pdl_launch_dependents();
  const int32_t before = state->step;
  const bool early = *const_cast<volatile int32_t*>(&state->ended) == 0;
  pdl_wait();
  const int32_t behind = state->step;
  const int32_t want = __ldcg(&state->copy);
  if (before != want || behind != want) atomicAdd(&state->wrong, 1);
  if (early) atomicAdd(&state->early, 1);
}

}  // namespace

void put_step(EarlyReads* state, flexq_ft::Stream stream) {
  int device = 0, multiprocessors = 0;
  FLEXQ_FT_CUDA(cudaGetDevice(&device));
  FLEXQ_FT_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  launch(count_step, dim3(1), dim3(1), 0, stream, state);
  full_edge(stream);
  launch(begin_step, dim3(1), dim3(1), 0, stream, state);
  for (int i = 0; i < 2; ++i) {
    launch(read_step, dim3(static_cast<unsigned>(4 * multiprocessors)), dim3(1), 0, stream, state);
  }
}

}  // namespace flexq_test
