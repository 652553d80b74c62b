#include "ft/decoding/stop.h"

#include "tests/cpp/check.h"

using flexq_ft::FinishReason;
using flexq_ft::SamplingParams;
using Ids = std::vector<int64_t>;

namespace {

FinishReason finish(const Ids& tokens, int64_t prompt, const SamplingParams& params,
                    const Ids& end_ids = {2}, int64_t max_len = 100) {
  return flexq_ft::finish_reason(tokens, prompt, params, end_ids, max_len);
}

SamplingParams with_stop_words(std::vector<Ids> words) {
  SamplingParams params;
  params.stop_words = std::move(words);
  return params;
}

}  // namespace

TEST(end_id_stops) {
  EXPECT(finish({5, 6, 2}, 2, {}) == FinishReason::kStop);
  EXPECT(finish({5, 6, 7}, 2, {}, {2, 7}) == FinishReason::kStop);
  EXPECT(finish({5, 2, 6}, 1, {}) == FinishReason::kNone);
}

TEST(ignored_end_id_does_not_stop) { EXPECT(finish({5, 6, 2}, 2, {}, {}) == FinishReason::kNone); }

TEST(stop_word_of_several_tokens_needs_all_of_them) {
  const SamplingParams params = with_stop_words({{8, 9}, {4}});
  EXPECT(finish({5, 8, 9}, 1, params) == FinishReason::kStop);
  EXPECT(finish({5, 8, 7, 9}, 1, params) == FinishReason::kNone);
  EXPECT(finish({5, 4}, 1, params) == FinishReason::kStop);
}

TEST(stop_word_may_begin_in_the_prompt) {
  EXPECT(finish({5, 8, 9}, 2, with_stop_words({{8, 9}})) == FinishReason::kStop);
}

TEST(stop_word_longer_than_the_sequence_does_not_read_before_it) {
  EXPECT(finish({8, 9}, 1, with_stop_words({{7, 8, 9}})) == FinishReason::kNone);
}

TEST(empty_stop_word_stops_nothing) {
  EXPECT(finish({8, 9}, 1, with_stop_words({{}})) == FinishReason::kNone);
}

TEST(min_tokens_does_not_hold_back_stop_words) {
  SamplingParams params = with_stop_words({{9}});
  params.min_tokens = 10;
  EXPECT(finish({8, 9}, 1, params) == FinishReason::kStop);
}

TEST(max_tokens_and_context_end_with_length) {
  SamplingParams params;
  params.max_tokens = 2;
  EXPECT(finish({5, 6, 7}, 2, params) == FinishReason::kNone);
  EXPECT(finish({5, 6, 7, 8}, 2, params) == FinishReason::kLength);
  EXPECT(finish({5, 6, 7}, 2, params, {2}, 3) == FinishReason::kLength);
}

TEST(end_id_at_the_limit_is_stop_not_length) {
  SamplingParams params;
  params.max_tokens = 1;
  EXPECT(finish({5, 2}, 1, params) == FinishReason::kStop);
}
