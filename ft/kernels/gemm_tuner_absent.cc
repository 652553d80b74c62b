// The tuner in a build without CUDA.
#include "ft/core/check.h"
#include "ft/core/cuda.h"
#include "ft/kernels/gemm_tuner.h"

namespace flexq_ft {

std::unique_ptr<GemmTuner> make_gemm_tuner(const TuneOptions&) {
  cuda::use_device(0);  // throws: there is no device to use
  FLEXQ_FT_CHECK(false, "a device in a build without CUDA");
  return {};
}

}  // namespace flexq_ft
