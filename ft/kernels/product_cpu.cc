#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

void check_finished(const Product& product) {
  FLEXQ_FT_CHECK_EQ(product.values.dtype(), DataType::kFp32, "product on the CPU");
  FLEXQ_FT_CHECK(!product.act_scale.defined() && !product.weight_scale.defined(),
                 "product on the CPU: scales that are still to be applied");
}

void finish_product(Tensor out, const Product& product) {
  const bool int32 = product.values.dtype() == DataType::kInt32;
  const int64_t n = out.dim(1);
  const auto at = [](ConstTensor vector, int64_t i, float absent) {
    return vector.defined() ? vector.data<float>()[i] : absent;
  };
  flexq_kernels::parallel_ranges(out.dim(0), out.count(), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float act_scale = at(product.act_scale, t, 1.0f);
      float* row = out.data<float>() + t * n;
      for (int64_t i = 0; i < n; ++i) {
        const float value = int32 ? static_cast<float>(product.values.data<int32_t>()[t * n + i])
                                  : product.values.data<float>()[t * n + i];
        row[i] =
            value * (at(product.weight_scale, i, 1.0f) * act_scale) + at(product.bias, i, 0.0f);
      }
    }
  });
}

}  // namespace flexq_ft::cpu
