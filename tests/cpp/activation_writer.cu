// A kernel that stands for the producer in front of a GEMM: see activation_writer.h.
#include "tests/cpp/activation_writer.h"

#include "flexq_kernels/gpu/dependent_launch.cuh"

namespace flexq_test {

namespace {

__global__ void write_words(uint32_t* to, const uint32_t* from, int64_t words, int delay) {
  flexq_kernels::gpu::pdl_launch_dependents();
  flexq_kernels::gpu::pdl_wait();
  const long long start = clock64();
  while (clock64() - start < delay) {
  }
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words;
       i += int64_t{gridDim.x} * blockDim.x) {
    to[i] = from[i];
  }
}

}  // namespace

void write_late(void* to, const void* from, int64_t bytes, int clocks,
                const flexq_kernels::gpu::Launch& launch) {
  flexq_kernels::gpu::launch_kernel(write_words, dim3(16), dim3(256), 0, launch,
                                    static_cast<uint32_t*>(to), static_cast<const uint32_t*>(from),
                                    bytes / 4, clocks);
}

}  // namespace flexq_test
