#include "ft/decoding/stop.h"

#include <algorithm>

namespace flexq_ft {

namespace {

bool ends_with(const std::vector<int64_t>& tokens, const std::vector<int64_t>& word) {
  return !word.empty() && word.size() <= tokens.size() &&
         std::equal(word.rbegin(), word.rend(), tokens.rbegin());
}

}  // namespace

FinishReason finish_reason(const std::vector<int64_t>& tokens, int64_t prompt,
                           const SamplingParams& params, const std::vector<int64_t>& end_ids,
                           int64_t max_len) {
  if (std::find(end_ids.begin(), end_ids.end(), tokens.back()) != end_ids.end()) {
    return FinishReason::kStop;
  }
  for (const std::vector<int64_t>& word : params.stop_words) {
    if (ends_with(tokens, word)) return FinishReason::kStop;
  }
  const int64_t length = static_cast<int64_t>(tokens.size());
  if (length - prompt >= params.max_tokens || length >= max_len) return FinishReason::kLength;
  return FinishReason::kNone;
}

}  // namespace flexq_ft
