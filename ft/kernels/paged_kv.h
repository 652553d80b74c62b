// One layer's share of the paged KV cache, and the ragged batch that reads and writes it.
#pragma once

#include <cstdint>

#include "ft/core/tensor.h"

namespace flexq_ft {

constexpr int kPageTokens = 16;

// K and V apart, pages [num_pages][kv_heads][16][head_dim] of the compute type; K is kept after
// rotation.
struct KvPages {
  Tensor k;
  Tensor v;
};

// Sequences of different lengths, packed without padding. Sequence s owns tokens
// [offsets[s], offsets[s + 1]), which are its positions context[s] … context[s] + length - 1; the
// earlier ones are in its pages already. On a GPU the tensors must lie before the queue's last
// full_edge: kernels read them while the one in front still runs.
struct RaggedBatch {
  ConstTensor ids;        // [tokens] int32
  ConstTensor positions;  // [tokens] int32
  ConstTensor offsets;    // [sequences + 1] int32
  ConstTensor context;    // [sequences] int32: tokens already in the cache
  ConstTensor pages;      // [sequences, max_pages] int32: page ids in order

  // Known to the host wherever the tensors are. A GPU takes its decode attention for the first
  // decodes sequences, and its prefill attention for those behind them.
  int64_t decodes = 0;  // leading sequences of exactly one token
  int64_t longest = 0;  // most tokens of a sequence behind them

  int64_t tokens() const { return ids.dim(0); }
  int64_t sequences() const { return context.dim(0); }
};

// Checks shapes, types, and that offsets, positions, context and page ids agree with each other and
// with the cache: an op that trusts them can neither read nor write past the pages. Of tensors on a
// GPU only shapes and types are checked.
void check_ragged_batch(const RaggedBatch& batch, const KvPages& kv);

}  // namespace flexq_ft
