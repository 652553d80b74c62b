// When a sequence ends, in FasterTransformer's meaning.
#pragma once

#include <cstdint>
#include <vector>

#include "ft/decoding/engine.h"

namespace flexq_ft {

// Whether the sequence ends after its newest token, which stays in the output in every case.
//   tokens   prompt and output; the newest last. prompt: how many of them are prompt
//   end_ids  those that count (none where they are ignored)
// Stop words compare the last tokens, prompt included; they are not held back by min_tokens.
FinishReason finish_reason(const std::vector<int64_t>& tokens, int64_t prompt,
                           const SamplingParams& params, const std::vector<int64_t>& end_ids,
                           int64_t max_len);

}  // namespace flexq_ft
