// What SamplingParams may hold.
#include <cmath>

#include "ft/core/check.h"
#include "ft/kernels/sampling.h"

namespace flexq_ft {

namespace {

template <typename T>
void require(bool good, const char* field, const T& value, const char* range, const char* hint) {
  if (good) return;
  throw Error(ErrorKind::kConfig, detail::join(field, " = ", value, " is not ", range), {}, hint);
}

void check_ids(const std::vector<int64_t>& ids, const char* field, int64_t vocab_size) {
  for (int64_t id : ids) {
    if (id >= 0 && id < vocab_size) continue;
    throw Error(
        ErrorKind::kConfig,
        detail::join(field, " holds id ", id, ", the vocabulary has ", vocab_size, " tokens"), {},
        detail::join("use ids from 0 to ", vocab_size - 1));
  }
}

void check_words(const std::vector<std::vector<int64_t>>& words, const char* field,
                 int64_t vocab_size) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].empty()) {
      throw Error(ErrorKind::kConfig, detail::join(field, "[", i, "] has no tokens"), {},
                  "give each word at least one token id");
    }
    check_ids(words[i], field, vocab_size);
  }
}

}  // namespace

void SamplingParams::validate(int64_t vocab_size) const {
  const bool temperature_ok =
      temperature == 0.0 || (temperature >= 1e-5 && std::isfinite(temperature));
  require(temperature_ok, "temperature", temperature, "0, or finite and at least 1e-5",
          "use 0 for greedy decoding");
  require(top_k >= 0, "top_k", top_k, "at least 0", "use 0 for no limit");
  require(top_p >= 0.0 && top_p <= 1.0, "top_p", top_p, "between 0 and 1", "use 1 for no limit");
  require(min_p >= 0.0 && min_p <= 1.0, "min_p", min_p, "between 0 and 1", "use 0 for no limit");
  require(repetition_penalty > 0.0 && std::isfinite(repetition_penalty), "repetition_penalty",
          repetition_penalty, "finite and above 0", "use 1 for no penalty");
  require(std::isfinite(presence_penalty), "presence_penalty", presence_penalty, "finite",
          "use 0 for no penalty");
  if (repetition_penalty != 1.0 && presence_penalty != 0.0) {
    throw Error(ErrorKind::kConfig,
                detail::join("repetition_penalty = ", repetition_penalty,
                             " and presence_penalty = ", presence_penalty, " exclude each other"),
                {}, "leave repetition_penalty at 1 or presence_penalty at 0");
  }
  require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1", "ask for one token or more");
  require(min_tokens >= 0, "min_tokens", min_tokens, "at least 0", "use 0 for no minimum");
  if (min_tokens > max_tokens) {
    throw Error(ErrorKind::kConfig,
                detail::join("min_tokens = ", min_tokens, " is above max_tokens = ", max_tokens),
                {}, "raise max_tokens or lower min_tokens");
  }
  check_ids(end_ids, "end_ids", vocab_size);
  check_words(stop_words, "stop_words", vocab_size);
  check_words(bad_words, "bad_words", vocab_size);
}

}  // namespace flexq_ft
