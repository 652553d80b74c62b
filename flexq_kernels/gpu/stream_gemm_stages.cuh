// Where a warp of the stream family has weights that are on their way. A stage is a group of k of
// the block's row tiles, as a warp multiplies it; a row tile's codes, and its scales, are those of
// one group after the other.
//
// RegisterStages: three 16-byte loads per lane and tile, in the order of their use. A stage's
// registers are loaded anew as soon as it has been multiplied.
//
// SharedStages: three 16-byte cp.async per lane and tile, and two for the scales, into a ring of
// the warp's own. Registers are for the tile that is multiplied alone; the room for the ring is
// L1's.
#pragma once

#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "flexq_kernels/gpu/tile_product.cuh"
#include "flexq_kernels/gpu/weight_load.cuh"

namespace flexq_kernels::gpu {

// The way of a warp through the weight, group by group of its chain. Pointers are the block's,
// offsets the lane's: 32 bits, and loads add the two.
template <int kTiles>
class StreamPlace {
 public:
  __device__ __forceinline__ StreamPlace(const StreamArgs& args, int first_tile,
                                         const StreamRange& chain, int code_lane, int scale_lane)
      : codes_at_(chain.first * kTileBytes + code_lane * 16),
        scales_at_(chain.first * kTileScaleBytes + scale_lane),
        left_(chain.count) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      // Past the last row tile: that one again, whose sums are not stored.
      const int64_t tile = int64_t{min(first_tile + r, args.row_tiles - 1)} * args.groups;
      codes_[r] = args.w.codes + tile * kTileBytes;
      scales_[r] = reinterpret_cast<const uint8_t*>(args.w.scales) + tile * kTileScaleBytes;
    }
  }

  __device__ __forceinline__ bool left() const { return left_ > 0; }
  __device__ __forceinline__ const uint8_t* codes(int r) const { return codes_[r] + codes_at_; }
  __device__ __forceinline__ const uint8_t* scales(int r) const { return scales_[r] + scales_at_; }

  __device__ __forceinline__ void advance() {
    codes_at_ += kTileBytes;
    scales_at_ += kTileScaleBytes;
    --left_;
  }

 private:
  const uint8_t* codes_[kTiles];
  const uint8_t* scales_[kTiles];
  uint32_t codes_at_, scales_at_;
  int left_;
};

template <int kTiles, int kStages>
class RegisterStages {
 public:
  static constexpr int kUnder = kStages;  // under way before the first is taken
  static constexpr int kWarpBytes = 0;

  __device__ __forceinline__ RegisterStages(const StreamArgs& args, int first_tile,
                                            const StreamRange& chain, uint32_t, int lane)
      : place_(args, first_tile, chain, lane, lane / 4 * 2), policy_(stream_once_policy()) {}

  // The next group, if there is one; slot: of the stages, known at compile time.
  __device__ __forceinline__ void ask(int slot) {
    if (!place_.left()) return;
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        w_[slot][r].chunk[c] = load_weight(place_.codes(r) + c * 512, policy_);
      }
      scales_[slot][r] = {load_weight_scale(place_.scales(r)),
                          load_weight_scale(place_.scales(r) + 16)};
    }
    place_.advance();
  }

  __device__ __forceinline__ void wait() const {}
  __device__ __forceinline__ TileWords tile(int slot, int r) const { return w_[slot][r]; }
  __device__ __forceinline__ TileScales scales(int slot, int r) const { return scales_[slot][r]; }

 private:
  StreamPlace<kTiles> place_;
  uint64_t policy_;
  TileWords w_[kStages][kTiles];
  TileScales scales_[kStages][kTiles];
};

template <int kTiles, int kStages>
class SharedStages {
  static constexpr int kSlotBytes = kTiles * (kTileBytes + kTileScaleBytes);

 public:
  static constexpr int kUnder = kStages - 1;  // a stage is overwritten when the next is taken
  static constexpr int kWarpBytes = kStages * kSlotBytes;

  __device__ __forceinline__ SharedStages(const StreamArgs& args, int first_tile,
                                          const StreamRange& chain, uint32_t ring, int lane)
      : place_(args, first_tile, chain, lane, lane % 2 * 16),
        ring_(ring),
        lane_(lane),
        policy_(stream_once_policy()) {}

  // After the last group an empty set of copies keeps the count.
  __device__ __forceinline__ void ask(int slot) {
    if (place_.left()) {
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        const uint32_t to = at(slot, r) + lane_ * 16;
#pragma unroll
        for (int c = 0; c < 3; ++c) copy_async(to + c * 512, place_.codes(r) + c * 512, policy_);
        if (lane_ < 2) copy_async(to + kTileBytes, place_.scales(r), policy_);
      }
      place_.advance();
    }
    commit_copies();
  }

  // For the oldest that is under way; all lanes have read the one before.
  __device__ __forceinline__ void wait() const {
    wait_copies<kStages - 2>();
    __syncwarp();
  }
  __device__ __forceinline__ TileWords tile(int slot, int r) const {
    return load_tile(at(slot, r), lane_);
  }
  __device__ __forceinline__ TileScales scales(int slot, int r) const {
    return load_tile_scales(at(slot, r) + kTileBytes, lane_);
  }

 private:
  __device__ __forceinline__ uint32_t at(int slot, int r) const {
    return ring_ + slot * kSlotBytes + r * (kTileBytes + kTileScaleBytes);
  }

  StreamPlace<kTiles> place_;
  uint32_t ring_;
  int lane_;
  uint64_t policy_;
};

}  // namespace flexq_kernels::gpu
