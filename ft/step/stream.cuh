// What the streaming warps of a block do: everything that the block reads in a step, in the order
// in which the computing warps take it.
#pragma once

#include "ft/step/attention_units.cuh"
#include "ft/step/row_tile.cuh"

namespace flexq_ft::step {

template <typename T, Format kFormat>
class Streamer {
 public:
  // self: which of the streaming warps.
  __device__ __forceinline__ Streamer(const Args& args, const RingPlace& ring, int self)
      : args_(args), ring_(ring, self), lane_(static_cast<int>(threadIdx.x % 32)) {
    once_ = flexq_kernels::gpu::stream_once_policy();
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(often_));
  }

  // Descriptions and maps of the next op are asked for before the copies of this one: nobody waits
  // for them.
  __device__ __forceinline__ void run(const uint32_t* plan) {
    const int last = kLayerOps * args_.layers;
    Op next = args_.ops[0];
    for (int index = 0; index <= last; ++index) {
      const Op op = next;
      if (index < last) {
        next = args_.ops[index + 1];
        fetch_maps(index + 1);
      }
      const int kind = kind_of(index);
      if (kind == kAttention) {
        attention(index);
      } else {
        product(op, index, kind, plan[index]);
      }
    }
  }

 private:
  __device__ __forceinline__ int kind_of(int index) const {
    return index == kLayerOps * args_.layers ? kHead : index % kLayerOps;
  }

  __device__ __forceinline__ const CUtensorMap& map(int index, int which) const {
    return *reinterpret_cast<const CUtensorMap*>(args_.maps + index * kOpMaps + which);
  }
  __device__ __forceinline__ void fetch_maps(int index) const {
    const int kind = kind_of(index);
    const int count = kind == kAttention ? 2 : kFormat == Format::kW6 && kind != kHead ? 0 : 1;
    if (lane_ < count) flexq_kernels::gpu::prefetch_tensor_map(map(index, lane_));
  }

  __device__ __forceinline__ void product(const Op& op, int index, int kind, uint32_t planned) {
    if (!has_work(planned)) return;
    const int first = first_unit(planned), count = unit_count(planned);
    if (op.norm_weight != nullptr) norm(op, index);
    for (int u = first; u < first + count; ++u) {
      if (kFormat == Format::kW6 && kind != kHead) {
        tiles(op, index, u);
      } else {
        stored_rows(op, index, u * kStageRows,
                    op.k * (kFormat == Format::kFloat || kind == kHead ? 2 : 1));
      }
    }
  }

  // All blocks read the same few: they may stay in the L2.
  __device__ __forceinline__ void norm(const Op& op, int index) {
    for (int begin = 0; begin < op.k; begin += kNormValues) {
      const auto bytes = static_cast<uint32_t>(min(kNormValues, op.k - begin) * 2);
      for (const void* values : {op.norm_weight, op.norm_bias}) {
        if (values == nullptr) continue;
        if (ring_.begin(bytes, index) && lane_ == 0)
          copy(0, static_cast<const T*>(values) + begin, bytes, often_);
      }
    }
  }

  __device__ __forceinline__ void tiles(const Op& op, int index, int row_tile) {
    const int groups = static_cast<int>(flexq_kernels::group_count(op.k));
    const int64_t at = static_cast<int64_t>(row_tile) * groups;
    constexpr int kScaleBytes = flexq_kernels::gpu::kTileScaleBytes;
    for (int g = 0; g < groups; g += kStageTiles) {
      const int count = min(kStageTiles, groups - g);
      const auto code_bytes = static_cast<uint32_t>(count * flexq_kernels::kTileBytes);
      const auto scale_bytes = static_cast<uint32_t>(count * kScaleBytes);
      if (!ring_.begin(code_bytes + scale_bytes, index)) continue;
      if (lane_ == 0) {
        copy(0, static_cast<const uint8_t*>(op.codes) + (at + g) * flexq_kernels::kTileBytes,
             code_bytes, once_);
      } else if (lane_ == 1) {
        copy(kStageTiles * flexq_kernels::kTileBytes,
             static_cast<const uint8_t*>(op.scales) + (at + g) * kScaleBytes, scale_bytes, once_);
      }
    }
  }

  // Boxes outside the matrix arrive as zeros, and count.
  __device__ __forceinline__ void stored_rows(const Op& op, int index, int row, int row_bytes) {
    const CUtensorMap& map = this->map(index, 0);
    constexpr int kBoxes = kRowBytes / kBoxBytes;
    for (int begin = 0; begin < row_bytes; begin += kRowBytes) {
      if (!ring_.begin(kStageRows * kRowBytes, index) || lane_ != 0) continue;
      if (op.boxes == 1) {
        flexq_kernels::gpu::copy_tensor(ring_.stage(), map, ring_.full(), 0, row, begin / kBoxBytes,
                                        once_);
      } else {
#pragma unroll
        for (int b = 0; b < kBoxes; ++b) {
          flexq_kernels::gpu::copy_tensor(
              ring_.stage() + static_cast<uint32_t>(b * kStageRows * kBoxBytes), map, ring_.full(),
              begin + b * kBoxBytes, row, 0, once_);
        }
      }
    }
  }

  __device__ __forceinline__ void copy(int offset, const void* from, uint32_t bytes,
                                       uint64_t policy) const {
    copy_bytes(ring_.stage() + static_cast<uint32_t>(offset), from, bytes, ring_.full(), policy);
  }

  // Of the units that go together K, then V.
  __device__ __forceinline__ void attention(int index) {
    const AttentionUnits units(args_);
    const int count = units.count(), together = args_.map.units_together;
    for (int first = 0; first < count; first += together) {
      const int last = min(first + together, count);
      for (int which = 0; which < 2; ++which) {
        for (int u = first; u < last; ++u) pages(units[u], map(index, which), index);
      }
    }
  }

  // Three or six pages a stage.
  __device__ __forceinline__ void pages(const AttentionUnit& unit, const CUtensorMap& map,
                                        int index) {
    const int tokens = stage_tokens(args_.head_dim);
    const int most = tokens / kPageTokens;
    const int page_bytes = kPageTokens * args_.head_dim * 2;
    const int32_t* const table =
        args_.pages + static_cast<int64_t>(unit.sequence) * args_.max_pages;
    for (int begin = unit.begin; begin < cached_end(unit); begin += tokens) {
      const int count = min(most, (cached_end(unit) - begin + kPageTokens - 1) / kPageTokens);
      const int page = lane_ < count ? table[begin / kPageTokens + lane_] : 0;
      if (!ring_.begin(static_cast<uint32_t>(count * page_bytes), index)) continue;
      if (lane_ >= count) continue;
      flexq_kernels::gpu::copy_tensor(ring_.stage() + static_cast<uint32_t>(lane_ * page_bytes),
                                      map, ring_.full(), 0,
                                      (page * args_.kv_heads + unit.head) * kPageTokens, 0, once_);
    }
  }

  const Args& args_;
  RingWriter ring_;
  int lane_;
  uint64_t once_, often_;
};

}  // namespace flexq_ft::step
