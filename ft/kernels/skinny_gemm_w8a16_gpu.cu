#include "ft/kernels/skinny_gemm_kernel.cuh"

namespace flexq_ft::gpu {

bool launch_skinny_w8a16(SkinnyMath math, const SkinnyArgs& args, const SkinnyConfig& config,
                         Stream stream) {
  return math == SkinnyMath::kW8Fp16 ? launch_skinny_all<SkinnyMath::kW8Fp16>(args, config, stream)
                                     : launch_skinny_all<SkinnyMath::kW8Bf16>(args, config, stream);
}

}  // namespace flexq_ft::gpu
