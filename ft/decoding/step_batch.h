// The ragged batch of a step, built in memory that is kept from step to step.
#pragma once

#include <cstdint>
#include <vector>

#include "ft/kernels/paged_kv.h"

namespace flexq_ft {

class StepBatch {
 public:
  StepBatch(int64_t max_tokens, int64_t max_sequences, int64_t max_pages);

  void clear();

  // Tokens [begin, begin + count) of a sequence, whose earlier ones are in its pages.
  void add(const std::vector<int64_t>& tokens, int64_t begin, int64_t count,
           const std::vector<int32_t>& pages);

  // Asks for logits of one token of the batch: by its place within the batch.
  void want_logits(int64_t batch_token) { rows_.push_back(static_cast<int32_t>(batch_token)); }

  int64_t tokens() const { return static_cast<int64_t>(ids_.size()); }
  RaggedBatch view() const;
  ConstTensor logit_rows() const;  // [rows] int32

 private:
  int64_t max_pages_;
  std::vector<int32_t> ids_, positions_, offsets_, context_, pages_, rows_;
};

}  // namespace flexq_ft
