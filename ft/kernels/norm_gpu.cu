#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/launch.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

void residual_norm(const LinearInput&, Tensor, const Product&, const NormArgs&, Stream) {
  FLEXQ_FT_CHECK(false, "not written yet");
  throw 0;
}

void add_residual(Tensor, const Product&, Stream) {
  FLEXQ_FT_CHECK(false, "not written yet");
  throw 0;
}

}  // namespace flexq_ft::gpu
