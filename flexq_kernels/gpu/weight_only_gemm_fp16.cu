// The weight-only family with tokens of fp16.
#include "flexq_kernels/gpu/weight_only_gemm_kernel.cuh"

namespace flexq_kernels::gpu {

bool launch_weight_only_fp16(const WeightOnlyArgs& args, const WeightOnlyConfig& config,
                             const Launch& launch) {
  return launch_weight_only<__half>(args, config, launch);
}

}  // namespace flexq_kernels::gpu
