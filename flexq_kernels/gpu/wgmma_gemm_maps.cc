// Tensor maps of the wgmma kernel's operands.
#include "flexq_kernels/gpu/tensor_map.h"
#include "flexq_kernels/gpu/wgmma_gemm_params.h"

namespace flexq_kernels::gpu {

void encode_tensor_maps(WgmmaParams& params, const Activations& x, const Weight& w,
                        const GemmProblem& problem, const WgmmaConfig& config) {
  const int64_t groups = group_count(problem.k), tiles = row_tiles(problem.n);
  const int64_t box_tiles = config.rows / kTileRows;
  params.weight_codes = encode_tensor_map("weight codes", CU_TENSOR_MAP_DATA_TYPE_INT64,
                                          CU_TENSOR_MAP_SWIZZLE_NONE, w.codes,
                                          {{kTileBytes / 8, 8, kTileBytes / 8},
                                           {groups, kTileBytes, 1},
                                           {tiles, groups * kTileBytes, box_tiles}});
  params.weight_scales = encode_tensor_map("weight scales", CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                           CU_TENSOR_MAP_SWIZZLE_NONE, w.scales,
                                           {{kTileRows, 2, kTileRows},
                                            {groups, 2 * kTileRows, 1},
                                            {tiles, groups * 2 * kTileRows, box_tiles}});
  params.codes = encode_tensor_map(
      "activation codes", CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, x.codes,
      {{groups * kGroupSize, 1, kGroupSize},
       {problem.m, groups * kGroupSize,
        config.sliced ? config.tokens : config.tokens / config.cluster}});
  params.scales = encode_tensor_map(
      "activation scales", CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_SWIZZLE_NONE, x.scales,
      {{problem.m, 4, config.tokens}, {groups, x.scale_stride * 4, 1}});
}

}  // namespace flexq_kernels::gpu
