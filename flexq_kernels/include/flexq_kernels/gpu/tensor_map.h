// Tensor maps: how the copy engine of sm_90 finds boxes of a tensor in global memory.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing is linked

#include <cstdint>
#include <initializer_list>

namespace flexq_kernels::gpu {

struct TensorAxis {
  int64_t extent;
  int64_t stride;  // bytes, of one step; of the first axis the size of an element
  int64_t box;
};

// The innermost axis first. Throws std::runtime_error naming `what` and the sizes where the driver
// refuses them, or has no tensor maps.
CUtensorMap encode_tensor_map(const char* what, CUtensorMapDataType type,
                              CUtensorMapSwizzle swizzle, const void* data,
                              std::initializer_list<TensorAxis> axes);

}  // namespace flexq_kernels::gpu
