// A layer with the library, from float weights to outputs, against the product of the floats.
#include <cstdio>

#include "layer.h"

int main() {
  const Layer layer;
  const std::vector<float> y = layer.multiply();
  double error = 0, size = 0;
  for (int64_t i = 0; i < layer.m * layer.n; ++i) {
    const float* x = layer.x.data() + i / layer.n * layer.k;
    const float* w = layer.w.data() + i % layer.n * layer.k;
    double want = 0;
    for (int64_t j = 0; j < layer.k; ++j) want += double{x[j]} * w[j];
    error += (y[i] - want) * (y[i] - want);
    size += want * want;
  }
  std::printf("relative error of the product: %.4f\n", std::sqrt(error / size));
  return error < 0.01 * size ? 0 : 1;  // six bits of weight
}
