// Launching our kernels, with programmatic dependent launch between two of them that follow each
// other (sm_90 and later; a full edge elsewhere).
//
// Its rules: flexq_kernels/gpu/dependent_launch.cuh. A library's kernels and copies have full edges
// on both sides (StreamTail).
#pragma once

#include <cuda_runtime.h>

#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "ft/core/cuda_check.h"
#include "ft/core/stream.h"

namespace flexq_ft::gpu {

using flexq_kernels::gpu::pdl_launch_dependents;
using flexq_kernels::gpu::pdl_wait;

// Throws Error{kDevice} that names the kernel and its grid where a launch was refused.
inline void check_launch(cudaError_t status, const void* kernel, const cudaLaunchConfig_t& config) {
  if (status == cudaSuccess) return;
  const std::string call = flexq_kernels::gpu::launch_text(kernel, config);
  detail::check_cuda(status, call.c_str(), __FILE__, __LINE__);
}

// Launches on the current device. Dynamic shared memory above 48 KB must have been allowed for the
// kernel (allow_shared_memory).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = stream.tail != nullptr && stream.tail->our_kernel ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&config, kernel, Params(args)...),
               reinterpret_cast<const void*>(kernel), config);
  if (stream.tail != nullptr) stream.tail->our_kernel = true;
}

// Allows a kernel so much dynamic shared memory on the current device.
template <typename Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  FLEXQ_FT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(bytes)));
}

}  // namespace flexq_ft::gpu
