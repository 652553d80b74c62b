// From rows of logits to tokens, and to the scores of given tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "ft/core/tensor.h"
#include "ft/kernels/sampling.h"

namespace flexq_ft {

// What one row is sampled with; the referents must outlive the call.
struct SampleRow {
  int64_t slot = 0;  // named in errors
  const SamplingParams* params = nullptr;
  const std::vector<int64_t>* end_ids = nullptr;
  const std::vector<int64_t>* history = nullptr;  // prompt and output
  int64_t generated = 0;
};

// One token per row of logits [rows, vocab] fp32, which are changed in place. Throws Error{kWeight}
// naming the slot if a row is not finite.
std::vector<Sampled> sample_rows(Tensor logits, const std::vector<SampleRow>& rows);

struct TokenScore {
  float logprob = 0.0f;  // log-softmax of the target
  int64_t argmax = 0;    // lowest id among ties
};

// targets [rows]: the token whose log-probability is asked for. first: position of the first row,
// named in errors. Throws as sample_rows.
std::vector<TokenScore> score_rows(ConstTensor logits, const std::vector<int64_t>& targets,
                                   int64_t first);

}  // namespace flexq_ft
