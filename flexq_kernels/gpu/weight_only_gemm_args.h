// What the launcher of the weight-only family hands to its kernels.
#pragma once

#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "flexq_kernels/gpu/weight_only_gemm.h"

namespace flexq_kernels::gpu {

struct WeightOnlyArgs {
  StreamArgs stream;        // all but x
  const void* x = nullptr;  // [m][k] in 16 bits
  int k = 0;
};

// The instance that a config names for so many tokens of fp16 or bf16. False: there is none.
bool launch_weight_only_fp16(const WeightOnlyArgs& args, const WeightOnlyConfig& config,
                             const Launch& launch);
bool launch_weight_only_bf16(const WeightOnlyArgs& args, const WeightOnlyConfig& config,
                             const Launch& launch);

}  // namespace flexq_kernels::gpu
