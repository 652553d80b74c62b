// Tensor maps of the wgmma kernel's operands. The driver's encoder is asked for at run time, so
// that nothing is linked with libcuda.
#include <cuda_runtime_api.h>

#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

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

struct Axis {
  int64_t extent;
  int64_t stride;  // bytes, of one step; of the first axis the size of an element
  int64_t box;
};

CUtensorMap encode(const char* what, CUtensorMapDataType type, CUtensorMapSwizzle swizzle,
                   const void* data, std::initializer_list<Axis> axes) {
  static const Encode encoder = find_encoder();
  std::vector<cuuint64_t> extents, strides;
  std::vector<cuuint32_t> boxes, steps(axes.size(), 1);
  for (const Axis& axis : axes) {
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
  for (const Axis& axis : axes) {
    shape += detail::join(" ", axis.extent, "/", axis.stride, "/", axis.box);
  }
  throw std::runtime_error(detail::join("the driver refuses a tensor map of ", what, " at ", data,
                                        ", extent/stride/box", shape, ": error ",
                                        static_cast<int>(result)));
}

}  // namespace

void encode_tensor_maps(WgmmaParams& params, const Activations& x, const Weight& w,
                        const GemmProblem& problem, const WgmmaConfig& config) {
  const int64_t groups = group_count(problem.k), tiles = row_tiles(problem.n);
  const int64_t box_tiles = config.rows / kTileRows;
  params.weight_codes =
      encode("weight codes", CU_TENSOR_MAP_DATA_TYPE_INT64, CU_TENSOR_MAP_SWIZZLE_NONE, w.codes,
             {{kTileBytes / 8, 8, kTileBytes / 8},
              {groups, kTileBytes, 1},
              {tiles, groups * kTileBytes, box_tiles}});
  params.weight_scales =
      encode("weight scales", CU_TENSOR_MAP_DATA_TYPE_UINT16, CU_TENSOR_MAP_SWIZZLE_NONE, w.scales,
             {{kTileRows, 2, kTileRows},
              {groups, 2 * kTileRows, 1},
              {tiles, groups * 2 * kTileRows, box_tiles}});
  params.codes =
      encode("activation codes", CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, x.codes,
             {{groups * kGroupSize, 1, kGroupSize},
              {problem.m, groups * kGroupSize,
               config.sliced ? config.tokens : config.tokens / config.cluster}});
  params.scales =
      encode("activation scales", CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_SWIZZLE_NONE,
             x.scales, {{problem.m, 4, config.tokens}, {groups, x.scale_stride * 4, 1}});
}

}  // namespace flexq_kernels::gpu
