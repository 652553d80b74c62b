#include "ft/kernels/residual.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

void invokeAddResidual(Tensor x, const Product& product, Stream stream) {
  FLEXQ_FT_CHECK(is_float(x.dtype()), "residual of ", x.dtype());
  FLEXQ_FT_CHECK_EQ(x.rank(), 2, "residual: x ", x.shape());
  check_product(product, x.dim(0), x.dim(1));
  if (x.empty()) return;
  if (x.device() == Device::kCuda) return gpu::add_residual(x, product, stream);
  cpu::check_finished(product);
  cpu::add_residual(x, product.values, product.bias);
}

}  // namespace flexq_ft
