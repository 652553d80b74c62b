// For sources that are compiled with the CUDA headers: a call that must succeed.
#pragma once

#include <cuda_runtime_api.h>

#include "ft/core/check.h"

namespace flexq_ft::detail {

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // it is told here, and not once more to who asks next
  const ErrorKind kind =
      status == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kDevice;
  throw Error(kind, join("CUDA: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")"),
              join(call, " at ", file, ":", line));
}

}  // namespace flexq_ft::detail

#define FLEXQ_FT_CUDA(expr) ::flexq_ft::detail::check_cuda((expr), #expr, __FILE__, __LINE__)
