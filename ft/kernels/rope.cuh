// The rotation of pairs, and where a token's K and V lie.
#pragma once

#include "ft/kernels/paged_kv.h"
#include "ft/kernels/rows_gpu.cuh"

namespace flexq_ft::gpu {

// a and b, of the compute type, turned by an angle: products and sums are rounded one by one, as
// in rope_simd.cc.
__device__ __forceinline__ void rotate(float& a, float& b, float cos, float sin) {
  const float turned = __fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin));
  b = __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin));
  a = turned;
}

// RaggedBatch as a kernel takes it.
struct BatchView {
  const int32_t* positions;
  const int32_t* offsets;
  const int32_t* pages;
  int64_t max_pages;
  int sequences;
  int decodes;

  explicit BatchView(const RaggedBatch& batch)
      : positions(static_cast<const int32_t*>(batch.positions.raw())),
        offsets(static_cast<const int32_t*>(batch.offsets.raw())),
        pages(static_cast<const int32_t*>(batch.pages.raw())),
        max_pages(batch.pages.dim(1)),
        sequences(static_cast<int>(batch.sequences())),
        decodes(static_cast<int>(batch.decodes)) {}

  // Of a token: the last sequence that does not begin behind it (empty ones share its begin).
  __device__ __forceinline__ int sequence_of(int token) const {
    if (token < decodes) return token;
    int low = decodes;
    int high = sequences;
    while (low < high) {
      const int middle = low + (high - low + 1) / 2;
      if (offsets[middle] <= token) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  // The slot, in tokens of one head, of a token's K and V; -1 where the batch has no page for it.
  __device__ __forceinline__ int64_t slot(int token, int position, int64_t num_pages, int kv_heads,
                                          int head) const {
    const int sequence = sequence_of(token);
    const int at = position / kPageTokens;
    if (sequence >= sequences || position < 0 || at >= max_pages) return -1;
    const int64_t page = pages[sequence * max_pages + at];
    if (page < 0 || page >= num_pages) return -1;
    return (page * kv_heads + head) * kPageTokens + position % kPageTokens;
  }
};

}  // namespace flexq_ft::gpu
