#include "ft/kernels/skinny_gemm_kernel.cuh"

namespace flexq_ft::gpu {

bool launch_skinny_int8(const SkinnyArgs& args, const SkinnyConfig& config, Stream stream) {
  return launch_skinny_all<SkinnyMath::kInt8>(args, config, stream);
}

}  // namespace flexq_ft::gpu
