// A quantised linear layer on borrowed arrays: what linear.cc checks and a device computes.
#pragma once

#include "flexq_kernels/gemm.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_ft {

struct LinearCall {
  flexq_kernels::GemmProblem problem;  // m >= 1
  flexq_kernels::gpu::Output y;
  const void* x = nullptr;  // [m, k] of y.type
  const uint8_t* codes = nullptr;
  const uint16_t* scales = nullptr;  // on a GPU tiled
  void* workspace = nullptr;         // on a GPU, linear_workspace_bytes
  void* stream = nullptr;            // cudaStream_t
};

// Codes and scales of the quantised x.
int64_t linear_workspace_bytes(int64_t m, int64_t k);

void linear_cpu(const LinearCall& call);
// On that device. Error{kDevice} in a build without CUDA.
void linear_gpu(const LinearCall& call, int device);

}  // namespace flexq_ft
