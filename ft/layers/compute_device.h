// Where a model computes: the CPU, or a GPU with its queue and its products.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"
#include "ft/kernels/gpu_gemm.h"
#include "ft/kernels/w6ax_gemm.h"

namespace flexq_ft {

struct ComputeDevice {
  Device device = Device::kCpu;
  Stream stream;
  GpuGemm* gemm = nullptr;   // of a GPU
  W6axGemm* w6ax = nullptr;  // of a GPU that runs a model of six-bit weights
};

}  // namespace flexq_ft
