// A tile of queries, as all kernels of prefill attention find it and write its rows.
#pragma once

#include "ft/kernels/attention_common.cuh"

namespace flexq_ft::gpu {

// Bit 15 or 31 set: a half of the word is infinite or NaN (its exponent plus one carries over).
__device__ __forceinline__ uint32_t not_finite(uint32_t pair, __half) {
  return ((pair & 0x7c007c00u) + 0x04000400u) & 0x80008000u;
}
__device__ __forceinline__ uint32_t not_finite(uint32_t pair, __nv_bfloat16) {
  return ((pair & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
}

// A block's tile of queries.
struct PrefillTile {
  int sequence;
  int64_t token;  // of the first row
  int rows;
  int position;  // of the first row
};

// Tile `index` of the sequences from `decodes` on, each cut into tiles of `rows`. Every thread of a
// warp must call it; rows = 0 past the last tile.
template <typename T>
__device__ __forceinline__ PrefillTile find_prefill_tile(const AttentionView<T>& view, int decodes,
                                                         int rows, int index) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int base = decodes; base < view.sequences; base += 32) {
    const int s = base + lane;
    int first = 0, length = 0, context = 0;
    if (s < view.sequences) {
      first = view.offsets[s];
      length = view.offsets[s + 1] - first;
      context = view.context[s];
    }
    const int tiles = (length + rows - 1) / rows;
    int sum = tiles;  // of the lanes up to this one
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, i);
      if (lane >= i) sum += other;
    }
    const uint32_t behind = __ballot_sync(0xffffffffu, index < sum);
    if (behind == 0) {
      index -= __shfl_sync(0xffffffffu, sum, 31);
      continue;
    }
    const int owner = __ffs(static_cast<int>(behind)) - 1;
    const int row = (index - __shfl_sync(0xffffffffu, sum - tiles, owner)) * rows;
    first = __shfl_sync(0xffffffffu, first, owner);
    length = __shfl_sync(0xffffffffu, length, owner);
    context = __shfl_sync(0xffffffffu, context, owner);
    return {base + owner, static_cast<int64_t>(first) + row, min(rows, length - row),
            context + row};
  }
  return {0, 0, 0, 0};
}

// A warp's rows [first, first + count) of a tile from shared memory to where they belong, 16 bytes
// a lane, with their codes if a group is a head. at(row, column): where eight values of a row lie.
template <typename T, int kDim, typename At>
__device__ __forceinline__ void write_prefill_rows(const At& at, const PrefillTile& tile,
                                                   const AttentionOut<T>& out, int head,
                                                   int head_dim, int first, int count) {
  constexpr int kWords = kDim / 8;  // of 16 bytes, in a row
  const Quantizer& q = out.quantizer;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = lane; i < count * kWords; i += 32) {  // a whole number of rounds
    const int row = first + i / kWords;
    const int column = i % kWords * 8;
    const bool there = row < tile.rows && column < head_dim;
    const uint4 x = *at(row, column);
    const int64_t token = tile.token + row;
    const int64_t to = token * q.columns + head * head_dim + column;
    if (there && out.values != nullptr) *reinterpret_cast<uint4*>(out.values + to) = x;
    if constexpr ((kDim & (kDim - 1)) == 0) {
      if (q.codes == nullptr) continue;
      const float2 p0 = unpack2(x.x, T{}), p1 = unpack2(x.y, T{});
      const float2 p2 = unpack2(x.z, T{}), p3 = unpack2(x.w, T{});
      const float low[4] = {p0.x, p0.y, p1.x, p1.y};
      const float high[4] = {p2.x, p2.y, p3.x, p3.y};
      int bits = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        bits = max(bits, max(magnitude_bits(low[e]), magnitude_bits(high[e])));
      }
#pragma unroll
      for (int lanes = kWords / 2; lanes > 0; lanes /= 2) {
        bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, lanes));
      }
      if (!there) continue;
      const float inverse = group_inverse(bits, q.limit);
      q.store(q.row(token), head * head_dim + column, pack_codes(low, inverse, q.limit),
              pack_codes(high, inverse, q.limit));
      if (column == 0) q.store_scale(token, head, group_scale(bits, q.limit));
    }
  }
}

// Host side.

// Does the wgmma kernel serve this on the current device? The type and the head size decide alone,
// never the tokens: a row has the same bits however its prompt is cut into chunks.
bool wgmma_prefill_takes(DataType dtype, int64_t head_dim);

// out has no codes unless prefill_quantizes() them.
void attention_prefill_wgmma(const LinearInput& out, ConstTensor q, const KvPages& kv,
                             const RaggedBatch& batch, Stream stream);

}  // namespace flexq_ft::gpu
