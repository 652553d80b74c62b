#include "ft/kernels/random_fill.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

void invokeRandomFill(Tensor out, const RandomFill& fill, int64_t first, Stream stream) {
  FLEXQ_FT_CHECK(is_float(out.dtype()) || size_of(out.dtype()) == 1, "random ", out.dtype());
  FLEXQ_FT_CHECK_LE(0, first, "random numbers from");
  if (out.empty()) return;
  if (out.device() == Device::kCuda) return gpu::random_fill(out, fill, first, stream);
  cpu::random_fill(out, fill, first);
}

}  // namespace flexq_ft
