// A linear layer of six-bit weights on borrowed arrays: what linear.cc checks and a device
// computes.
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
  void* scratch = nullptr;           // on a GPU, linear_scratch_bytes
  void* workspace = nullptr;         // on a GPU, linear_workspace_bytes; null where that is 0
  void* stream = nullptr;            // cudaStream_t
};

// Codes and scales of the quantised x; 0 for act_bits 16.
int64_t linear_scratch_bytes(const flexq_kernels::GemmProblem& problem);
// Of the product on that device: zeros before its first use (flexq_kernels/gpu/w6ax_gemm.h).
int64_t linear_workspace_bytes(const flexq_kernels::GemmProblem& problem, int device);

void linear_cpu(const LinearCall& call);
// On that device. Error{kDevice} in a build without CUDA.
void linear_gpu(const LinearCall& call, int device);

// The weight as floats, [n, k] of y.type to y.values: of the call n, k, codes, scales and stream.
void dequantize_gpu(const LinearCall& call, int device);

}  // namespace flexq_ft
