// The ragged batch of a step, made on the GPU from what the slots hold there: a step can be
// launched before the host knows the tokens of the step before it.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"
#include "ft/kernels/paged_kv.h"

namespace flexq_ft {

// Tokens [begin, begin + count) of a slot's sequence; begin = kNewestToken: its last one, count 1.
struct StepInputItem {
  static constexpr int32_t kNewestToken = -1;
  int32_t slot = -1;  // -1: an idle row, which fills a batch up
  int32_t begin = 0;
  int32_t count = 1;
  int32_t first = 0;       // where its tokens begin in the batch
  int32_t logit_row = -1;  // of its last token; -1: none is wanted
};
constexpr int kStepInputInts = sizeof(StepInputItem) / sizeof(int32_t);

// What the slots hold on the GPU, one row each.
struct SlotTensors {
  ConstTensor history;   // [slots, max_len] int32: prompt and output
  ConstTensor tokens;    // [slots] int32: how many
  ConstTensor finished;  // [slots] int32: not 0: the sequence has ended, its rows are idle
  ConstTensor pages;     // [slots, max_pages] int32
};

// Views of a batch of so many sequences, tokens and rows of logits.
struct StepInputs {
  Tensor ids;         // [tokens] int32
  Tensor positions;   // [tokens] int32
  Tensor offsets;     // [sequences + 1] int32
  Tensor context;     // [sequences] int32
  Tensor pages;       // [sequences, max_pages] int32
  Tensor token_rows;  // [logit rows] int32: the token of the batch that has these logits
  Tensor row_slots;   // [logit rows] int32: the slot that is sampled; -1: idle
};

// items [sequences, kStepInputInts] int32. Idle sequences get token 0 from position 0 on, in the
// scratch page. GPU only.
void invokeStepInputs(const StepInputs& out, ConstTensor items, const SlotTensors& slots,
                      int32_t scratch_page, Stream stream);

}  // namespace flexq_ft
