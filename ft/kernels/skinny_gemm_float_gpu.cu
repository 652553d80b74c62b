#include "ft/kernels/skinny_gemm_kernel.cuh"

namespace flexq_ft::gpu {

bool launch_skinny_float(SkinnyMath math, const SkinnyArgs& args, const SkinnyConfig& config,
                         Stream stream) {
  return math == SkinnyMath::kFp16 ? launch_skinny_all<SkinnyMath::kFp16>(args, config, stream)
                                   : launch_skinny_all<SkinnyMath::kBf16>(args, config, stream);
}

}  // namespace flexq_ft::gpu
