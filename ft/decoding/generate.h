// A list of requests run to their end: the loop over admit, step and release.
#pragma once

#include <functional>
#include <vector>

#include "ft/decoding/engine.h"

namespace flexq_ft {

struct GenerateRequest {
  std::vector<int64_t> prompt;
  SamplingParams params;
};

struct GenerateResult {
  std::vector<int64_t> tokens;  // output only
  std::vector<float> logprobs;  // one per output token
  FinishReason finish = FinishReason::kNone;
  double prefill_s = 0.0;  // from admission to the first token
  double decode_s = 0.0;   // from the first token to the last
};

struct GenerateReport {
  std::vector<GenerateResult> results;  // in the order of the requests
  // Wall time of the steps in which some prompt was not finished, and of all other steps; and the
  // tokens of each: prompt tokens, and tokens given by decode steps.
  double prefill_s = 0.0;
  double decode_s = 0.0;
  int64_t prefill_tokens = 0;
  int64_t decode_tokens = 0;
};

// Called for each token as it comes; output.slot is the engine's, request the place in the list.
using TokenCallback = std::function<void(size_t request, const StepOutput& output)>;

// Requests are admitted in order, as slots become free. The engine must have no slot in use, and
// has none afterwards, also when this throws. Every rank must call it with the same requests.
GenerateReport generate(Engine& engine, const std::vector<GenerateRequest>& requests,
                        const TokenCallback& on_token = {});

}  // namespace flexq_ft
