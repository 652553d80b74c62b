// An Output of [m, n] as kernels take it.
#pragma once

namespace flexq_kernels::gpu {

struct StoreTarget {
  void* values = nullptr;          // [m][n]
  const float* bias = nullptr;     // [n] or null
  const void* residual = nullptr;  // [m][n] or null
  int m = 0;
  int n = 0;
};

}  // namespace flexq_kernels::gpu
