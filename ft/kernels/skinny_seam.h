// The kernels for few rows, where this tree has them.
#pragma once

#if __has_include("ft/kernels/skinny_gemm.h")
#include "ft/kernels/skinny_gemm.h"
#else
#include <ostream>
#include <vector>

#include "ft/kernels/gpu_gemm.h"

namespace flexq_ft::gpu {

struct SkinnyConfig {
  int warps = 8;
};
inline std::ostream& operator<<(std::ostream& out, const SkinnyConfig&) { return out; }
inline bool skinny_gemm_takes(const GemmProblem&) { return false; }
inline std::vector<SkinnyConfig> skinny_configs(const GemmProblem&) { return {}; }
inline SkinnyConfig skinny_default(const GemmProblem&, int) { return {}; }
inline void invokeSkinnyGemm(Tensor, ConstTensor, ConstTensor, Scheme, const SkinnyConfig&,
                             Stream) {}

}  // namespace flexq_ft::gpu
#endif
