// The GPU's read stream in a build without CUDA.
#include "ft/bench/read_stream.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

double measure_read_stream_gpu(const ReadStreamOptions&, int gpu) {
  cuda::use_device(gpu);  // throws: there is no device to use
  return 0.0;
}

}  // namespace flexq_ft
