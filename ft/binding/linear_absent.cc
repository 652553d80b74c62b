// The linear layer on a GPU in a build without CUDA.
#include "ft/binding/linear.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

int64_t linear_workspace_bytes(const flexq_kernels::GemmProblem&, int device) {
  cuda::use_device(device);  // throws why not
  return 0;
}

void linear_gpu(const LinearCall&, int device) { cuda::use_device(device); }  // throws why not

void dequantize_gpu(const LinearCall&, int device) { cuda::use_device(device); }

}  // namespace flexq_ft
