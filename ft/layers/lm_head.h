// LmHead: hidden rows to logits. Vocabulary-parallel: every rank multiplies its ceil(vocab / ranks)
// rows of the head, and all ranks gather the same logits.
#pragma once

#include "ft/layers/linear.h"

namespace flexq_ft {

class LmHead {
 public:
  // Keeps a reference to the weight. max_rows: most rows of one call.
  LmHead(const LinearWeight& weight, int64_t vocab_size, int64_t max_rows, int ranks,
         Device device);

  // logits [rows, vocab] fp32 from x [rows, hidden] of the compute type.
  void forward(Tensor logits, ConstTensor x, const LayerContext& context) const;

  const Linear& linear() const { return linear_; }

  // Bytes held besides the weight.
  static size_t gather_bytes(int64_t vocab_size, int64_t max_rows, int ranks);

 private:
  void multiply(Tensor y, ConstTensor x, const LayerContext& context) const;
  void gather(Tensor logits, ConstTensor x, const LayerContext& context) const;

  Linear linear_;
  int64_t vocab_size_;
  int64_t local_columns_;  // ceil(vocab / ranks): what every rank sends
  Buffer product_;         // [rows, n]
  Buffer local_;           // [rows, local_columns]
  Buffer gathered_;        // [ranks, rows, local_columns]
};

}  // namespace flexq_ft
