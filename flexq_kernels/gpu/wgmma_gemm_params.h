// What the host hands to the wgmma kernel: tensor maps of its operands and the order of its tiles.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing is linked

#include <cstddef>
#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/gpu/store_target.h"
#include "flexq_kernels/gpu/tile_order.h"
#include "flexq_kernels/gpu/wgmma_gemm.h"
#include "flexq_kernels/gpu/wgmma_gemm_schedule.h"

namespace flexq_kernels::gpu {

// What a block computes at a time, 64 rows by each of its multiplying warpgroups, or twice 64.
template <int kRows_, int kTokens_, int kCluster_>
struct WgmmaTile {
  static constexpr int kRows = kRows_, kTokens = kTokens_, kCluster = kCluster_;
  static constexpr int kRowTiles = kRows == 256 ? 2 : 1;        // of a warp
  static constexpr int kWarps = kRows / kTileRows / kRowTiles;  // multiplying ones
  static constexpr bool kWide = kRows > 128 || kTokens == 256;  // products of 128 tokens, or of 64
  static constexpr bool kSliced = false;
  static constexpr bool kGates = wgmma_takes_gate({kRows, kTokens});
};

// The same by a cluster whose blocks have a slice of K each; it is of any size.
template <int kRows, int kTokens>
struct WgmmaSlicedTile : WgmmaTile<kRows, kTokens, 1> {
  static constexpr bool kSliced = true;
  static constexpr bool kGates = false;
};

constexpr int kWgmmaMostSlices = 8;  // a cluster that every Hopper GPU takes
constexpr int kWgmmaMostWarps = 12;
constexpr size_t kWgmmaFlagBytes = kWgmmaMostWarps * sizeof(int32_t);  // of a block

bool wgmma_has_config(const WgmmaConfig& config);

struct WgmmaParams {
  CUtensorMap weight_codes;   // [row tile][group][1536 bytes], in boxes of rows / 16 x 1 x 1536
  CUtensorMap weight_scales;  // [row tile][group][16] fp16, in boxes of rows / 16 x 1 x 16
  CUtensorMap codes;          // [token][k], in boxes of (tokens / cluster) x 128, swizzled
  CUtensorMap scales;         // [group][token], in boxes of 1 x tokens
  StoreTarget y;
  FloatType type = FloatType::kFp32;
  Gate gate = Gate::kNone;
  int rows = 0;             // of the weight: y.n, or twice as many with a gate
  int32_t* sums = nullptr;  // [m, n, groups] instead of y
  int groups = 0;
  int slices = 0;   // where config.sliced; then nothing below `tiles` is used
  TileOrder tiles;  // of `cluster` blocks of config.rows x config.tokens
  WgmmaSchedule schedule;
  // Of blocks that hand over the sums of a cut tile: the sums [block][tokens / 8 of each row tile
  // of a warp][multiplying threads][4], and whether they are there [block][warp].
  float* handed = nullptr;
  int32_t* handed_flags = nullptr;
};

WgmmaSchedule wgmma_schedule(const GemmProblem& problem, const WgmmaConfig& config,
                             const Device& device);

// Throws std::runtime_error where the driver has no tensor maps or refuses one.
void encode_tensor_maps(WgmmaParams& params, const Activations& x, const Weight& w,
                        const GemmProblem& problem, const WgmmaConfig& config);

}  // namespace flexq_kernels::gpu
