// The driver's encoder is asked for at run time, so that nothing is linked with libcuda.
#include "flexq_kernels/gpu/tensor_map.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "flexq_kernels/check.h"

namespace flexq_kernels::gpu {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw std::runtime_error("the driver has no cuTensorMapEncodeTiled (CUDA 12.0 or later)");
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap encode_tensor_map(const char* what, CUtensorMapDataType type,
                              CUtensorMapSwizzle swizzle, const void* data,
                              std::initializer_list<TensorAxis> axes) {
  static const Encode encoder = find_encoder();
  std::vector<cuuint64_t> extents, strides;
  std::vector<cuuint32_t> boxes, steps(axes.size(), 1);
  for (const TensorAxis& axis : axes) {
    if (!extents.empty()) strides.push_back(static_cast<cuuint64_t>(axis.stride));
    extents.push_back(static_cast<cuuint64_t>(axis.extent));
    boxes.push_back(static_cast<cuuint32_t>(axis.box));
  }
  CUtensorMap map;
  const CUresult result = encoder(
      &map, type, static_cast<cuuint32_t>(axes.size()), const_cast<void*>(data), extents.data(),
      strides.data(), boxes.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  std::string shape;
  for (const TensorAxis& axis : axes) {
    shape += detail::join(" ", axis.extent, "/", axis.stride, "/", axis.box);
  }
  throw std::runtime_error(detail::join("the driver refuses a tensor map of ", what, " at ", data,
                                        ", extent/stride/box", shape, ": error ",
                                        static_cast<int>(result)));
}

}  // namespace flexq_kernels::gpu
