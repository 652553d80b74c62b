// Programmatic dependent launch between kernels that follow each other in a stream (sm_90 and
// later; a full edge elsewhere). The rules that make it safe (CUDA programming guide, "Programmatic
// Dependent Launch"):
//   - every kernel calls pdl_wait() in every thread that reads or writes memory that another kernel
//     touches, before it does; and at least once in every block. Then "the kernel before has
//     finished" is transitive, and buffers may be reused along a chain. Before it a kernel may only
//     read what no kernel writes behind the last full edge (weights, a step's inputs).
//   - every kernel calls pdl_launch_dependents() once, as early as it can: the next kernel's blocks
//     may then be placed as soon as there is room, and wait in pdl_wait().
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void pdl_launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Throws std::runtime_error for what the CUDA runtime refuses.
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // it is told here, and not once more to who asks next
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// "launch of sm90_… (its mangled name), 132 x 1 blocks of 288 threads, 180224 bytes of shared
// memory".
inline std::string launch_text(const void* kernel, const cudaLaunchConfig_t& config) {
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = nullptr;
  (void)cudaGetLastError();
  return std::string("launch of ") + (name != nullptr ? name : "a kernel") + ", " +
         std::to_string(config.gridDim.x) + " x " + std::to_string(config.gridDim.y) +
         " blocks of " + std::to_string(config.blockDim.x * config.blockDim.y) + " threads, " +
         std::to_string(config.dynamicSmemBytes) + " bytes of shared memory";
}

// Blocks, in clusters of so many neighbours along x where the kernel does not say it itself.
struct Grid {
  dim3 blocks;
  unsigned cluster = 0;

  Grid(dim3 all, unsigned of_cluster = 0) : blocks(all), cluster(of_cluster) {}
};

// Allows the kernel so much dynamic shared memory and launches it on the current device.
template <typename... Params, typename... Args>
void launch_kernel(void (*kernel)(Params...), const Grid& grid, dim3 block, size_t shared_bytes,
                   const Launch& how, Args&&... args) {
  if (shared_bytes > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "shared memory of a kernel");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(how.stream);
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (how.programmatic) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 0) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {grid.cluster, 1, 1};
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Params(args)...);
  if (error == cudaSuccess) return;
  check_cuda(error, launch_text(reinterpret_cast<const void*>(kernel), config).c_str());
}

}  // namespace flexq_kernels::gpu
