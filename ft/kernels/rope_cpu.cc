#include <algorithm>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/rows_simd.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

void rope_append(Tensor q, KvPages kv, ConstTensor qkv, ConstTensor rope,
                 const RaggedBatch& batch) {
  const int64_t kv_heads = kv.k.dim(1);
  const int64_t head_dim = kv.k.dim(3);
  const int64_t heads = q.dim(1) / head_dim;
  const size_t head_bytes = static_cast<size_t>(head_dim) * size_of(q.dtype());
  const auto rope_head = FLEXQ_ISA_PICK(rope_head);
  const int32_t* offsets = batch.offsets.data<int32_t>();
  const int32_t* positions = batch.positions.data<int32_t>();
  char* k_data = static_cast<char*>(kv.k.raw());
  char* v_data = static_cast<char*>(kv.v.raw());

  flexq_kernels::parallel_ranges(q.dim(0), qkv.count() * 2, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = positions[t];
      const float* x = qkv.data<float>() + t * qkv.dim(1);
      const float* angles = rope.defined() ? rope.data<float>() + position * head_dim : nullptr;
      char* q_out = static_cast<char*>(q.raw()) + static_cast<size_t>(t * heads) * head_bytes;
      for (int64_t h = 0; h < heads; ++h, x += head_dim, q_out += head_bytes) {
        rope_head(q_out, x, angles, head_dim, q.dtype());
      }
      const int64_t s = std::upper_bound(offsets, offsets + batch.sequences() + 1, t) - offsets - 1;
      const int64_t page =
          batch.pages.data<int32_t>()[s * batch.pages.dim(1) + position / kPageTokens];
      for (int64_t h = 0; h < kv_heads; ++h, x += head_dim) {
        const int64_t slot = (page * kv_heads + h) * kPageTokens + position % kPageTokens;
        const size_t at = static_cast<size_t>(slot) * head_bytes;
        rope_head(k_data + at, x, angles, head_dim, q.dtype());
        rope_head(v_data + at, x + kv_heads * head_dim, nullptr, head_dim, q.dtype());
      }
    }
  });
}

}  // namespace flexq_ft::cpu
