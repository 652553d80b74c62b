// GpuDevice: one GPU as an engine uses it.
#pragma once

#include <memory>

#include "ft/core/cuda.h"
#include "ft/decoding/engine.h"
#include "ft/layers/compute_device.h"

namespace flexq_ft {

struct GpuDevice {
  cuda::Queue queue;
  std::unique_ptr<GpuGemm> gemm;
  std::unique_ptr<W6axGemm> w6ax;  // has_six_bits()

  ComputeDevice compute() { return {Device::kCuda, queue.stream(), gemm.get(), w6ax.get()}; }
};

// Whether a weight of the model has six bits: all linears', or the head's. options: resolved.
bool has_six_bits(const EngineOptions& options);

// What GpuGemm of an engine with these (resolved) options has to take.
GpuGemmLimits gemm_limits(const ModelFolder& folder, const EngineOptions& options, int rank);

// Null where the options say CPU. Makes the GPU the calling thread's.
std::unique_ptr<GpuDevice> open_gpu(const ModelFolder& folder, const EngineOptions& options,
                                    int rank);

// Makes the options' GPU the calling thread's; a no-op on the CPU.
void use_device_of(const EngineOptions& options);

}  // namespace flexq_ft
