// Sampling: the generator's published vectors, and the order and edges of the steps.
#include <limits>
#include <vector>

#include "ft/core/error.h"
#include "ft/kernels/sampling.h"
#include "tests/cpp/check.h"

namespace {

using flexq_ft::Error;
using flexq_ft::philox4x32;
using flexq_ft::philox_uniform;
using flexq_ft::Sampled;
using flexq_ft::SamplingParams;

int64_t pick(std::vector<float> logits, const SamplingParams& params,
             const std::vector<int64_t>& history = {}, int64_t generated = 0,
             const std::vector<int64_t>& end_ids = {}) {
  return flexq_ft::sample_token(logits.data(), static_cast<int64_t>(logits.size()), params, end_ids,
                                history, generated)
      .token;
}

// How often each token is drawn in 4000 steps.
std::vector<int> histogram(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<int> counts(logits.size());
  for (int64_t i = 0; i < 4000; ++i) ++counts[static_cast<size_t>(pick(logits, params, {}, i))];
  return counts;
}

}  // namespace

// From the known-answer file of Random123, the authors' own implementation.
TEST(philox_gives_the_published_vectors) {
  using Block = std::array<uint32_t, 4>;
  EXPECT(
      (philox4x32({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffffu;
  EXPECT((philox4x32({ones, ones, ones, ones}, {ones, ones}) ==
          Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
          Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(uniform_is_the_top_bits_of_the_first_two_words) {
  const uint64_t bits = 0xe169c58d6627e8d5u;
  EXPECT_EQ(philox_uniform(0, 0), static_cast<double>(bits >> 11) / 9007199254740992.0);
  double sum = 0.0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = philox_uniform(7, i);
    EXPECT(u >= 0.0 && u < 1.0);
    sum += u;
  }
  EXPECT(sum > 4900.0 && sum < 5100.0);
  EXPECT(philox_uniform(1, 0) != philox_uniform(uint64_t{1} << 32, 0));
}

TEST(greedy_ties_go_to_the_lowest_id) {
  EXPECT_EQ(pick({1, 3, 3, 2, 3}, {}), 1);
  SamplingParams top1;
  top1.temperature = 1.0;
  top1.top_k = 1;
  EXPECT_EQ(pick({1, 3, 3, 2, 3}, top1), 1);
}

TEST(top_k_and_top_p_zero_is_greedy_at_any_temperature) {
  SamplingParams params;
  params.temperature = 50.0;
  params.top_k = 0;
  params.top_p = 0.0;
  for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(pick({0, 1, 2, 1}, params, {}, i), 2);
}

TEST(top_k_with_top_p_zero_keeps_k_tokens) {
  SamplingParams params;
  params.temperature = 1.0;
  params.top_k = 2;
  params.top_p = 0.0;
  const std::vector<int> counts = histogram({1, 2, 2, 1}, params);
  EXPECT_EQ(counts[0], 0);
  EXPECT_EQ(counts[3], 0);
  EXPECT(counts[1] > 1800 && counts[2] > 1800);
}

// exp(0), exp(-ln 2), exp(-ln 4): 4/7, 2/7, 1/7.
TEST(top_p_keeps_the_smallest_set_with_its_mass) {
  const std::vector<float> logits = {-1.3862944f, 0.0f, -0.6931472f};
  SamplingParams params;
  params.temperature = 1.0;
  params.top_p = 0.57;  // just below 4/7: the best token alone
  EXPECT_EQ(histogram(logits, params)[1], 4000);
  params.top_p = 0.58;  // just above: two tokens
  const std::vector<int> two = histogram(logits, params);
  EXPECT_EQ(two[0], 0);
  EXPECT(two[1] > 2550 && two[1] < 2780);
  params.top_k = 2;
  params.top_p = 0.66;  // of the mass of two tokens, 2/3: the best alone
  EXPECT_EQ(histogram(logits, params)[1], 4000);
}

TEST(min_p_is_relative_to_the_best_token) {
  const std::vector<float> logits = {-1.3862944f, 0.0f, -0.6931472f};
  SamplingParams params;
  params.temperature = 1.0;
  params.min_p = 0.4;
  const std::vector<int> counts = histogram(logits, params);
  EXPECT_EQ(counts[0], 0);
  EXPECT(counts[2] > 1200);
}

TEST(temperature_divides_without_an_epsilon) {
  SamplingParams params;
  params.temperature = 1e-5;
  // FasterTransformer would divide by 1.1e-5, and by 1 + 1e-6 at 1.
  EXPECT_EQ(pick({0.0f, 2e-4f}, params), 1);
  SamplingParams warm;
  warm.temperature = 2.0;  // halves the difference: 2/3 and 1/3 from logits ln 4
  const std::vector<int> counts = histogram({1.3862944f, 0.0f}, warm);
  EXPECT(counts[1] > 1240 && counts[1] < 1430);
}

TEST(id_zero_can_be_banned) {
  SamplingParams params;
  params.bad_words = {{0}};
  EXPECT_EQ(pick({9, 1, 2}, params), 2);
}

TEST(bad_word_is_banned_only_after_its_prefix) {
  SamplingParams params;
  params.bad_words = {{4, 5, 0}};
  EXPECT_EQ(pick({9, 1, 2, 0, 0, 0}, params, {4, 5}), 2);
  EXPECT_EQ(pick({9, 1, 2, 0, 0, 0}, params, {5, 4}), 0);
  EXPECT_EQ(pick({9, 1, 2, 0, 0, 0}, params, {5}), 0);
}

TEST(penalties_apply_once_per_seen_id) {
  SamplingParams repetition;
  repetition.repetition_penalty = 2.0;
  EXPECT_EQ(pick({4.0f, 2.5f}, repetition, {0, 0, 0}), 1);  // 4 / 2 < 2.5
  EXPECT_EQ(pick({4.0f, 1.9f}, repetition, {0, 0, 0}), 0);  // 4 / 2 > 1.9, not 4 / 8
  EXPECT_EQ(pick({-1.0f, -1.5f}, repetition, {0}), 1);      // -1 * 2 < -1.5
  SamplingParams presence;
  presence.presence_penalty = 1.0;
  EXPECT_EQ(pick({2.0f, 1.5f}, presence, {0, 0}), 1);
  EXPECT_EQ(pick({2.0f, 0.5f}, presence, {0, 0}), 0);
}

TEST(end_ids_are_masked_until_min_tokens) {
  SamplingParams params;
  params.min_tokens = 2;
  const std::vector<float> logits = {0, 5, 4};
  EXPECT_EQ(pick(logits, params, {}, 1, {1}), 2);
  EXPECT_EQ(pick(logits, params, {}, 2, {1}), 1);
  params.end_ids = {2};  // the request's own instead of the model's
  EXPECT_EQ(pick(logits, params, {}, 1, {1}), 1);
}

TEST(a_model_that_gives_nan_is_an_error_not_a_token) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_THROW(pick({1, nan, 2}, {}), Error, "not finite: token 1 of 3");
  EXPECT_THROW(pick({1, 2, inf}, {}), Error, "not finite: token 2 of 3");
  EXPECT_THROW(pick({-inf, 2, 1}, {}), Error, "not finite: token 0 of 3");
}

TEST(nothing_left_to_draw_is_an_error) {
  SamplingParams params;
  params.bad_words = {{0}, {1}};
  EXPECT_THROW(pick({1, 2}, params), Error, "none of the 2 tokens");
}

TEST(a_logit_that_temperature_or_penalty_make_infinite_is_an_error) {
  SamplingParams penalty;
  penalty.temperature = 1.0;
  penalty.repetition_penalty = 1e-300;
  EXPECT_THROW(pick({1, 2, 3}, penalty, {1, 2}), Error, "the logit of token 1 infinite");
  SamplingParams cold;
  cold.temperature = 1e-5;
  EXPECT_THROW(pick({1, 1e35f}, cold), Error, "temperature = 1e-05");
}

TEST(a_draw_depends_on_seed_and_step_only) {
  SamplingParams params;
  params.temperature = 1.0;
  params.seed = 12345;
  const std::vector<float> flat(1000, 0.0f);
  const int64_t token = pick(flat, params, {}, 3);
  EXPECT_EQ(pick(flat, params, {1, 2, 3}, 3), token);
  EXPECT_EQ(token, static_cast<int64_t>(1000 * philox_uniform(12345, 3)));
}

TEST(logprob_is_of_the_models_own_logits) {
  std::vector<float> logits = {0.0f, 0.0f, 0.0f, 0.0f};
  SamplingParams params;
  params.bad_words = {{0}, {1}, {2}};
  params.temperature = 7.0;
  const Sampled out = flexq_ft::sample_token(logits.data(), 4, params, {}, {}, 0);
  EXPECT_EQ(out.token, 3);
  EXPECT(out.logprob > -1.386295f && out.logprob < -1.386294f);
}

TEST(validate_names_field_and_value) {
  const auto refused = [](auto set) {
    SamplingParams params;
    set(params);
    params.validate(10);
  };
  EXPECT_THROW(refused([](auto& p) { p.temperature = -0.5; }), Error, "temperature = -0.5");
  EXPECT_THROW(refused([](auto& p) { p.temperature = 1e-9; }), Error, "temperature = 1e-09");
  EXPECT_THROW(refused([](auto& p) { p.temperature = 0.0 / 0.0; }), Error, "temperature");
  EXPECT_THROW(refused([](auto& p) { p.top_k = -1; }), Error, "top_k = -1");
  EXPECT_THROW(refused([](auto& p) { p.top_p = 1.5; }), Error, "top_p = 1.5");
  EXPECT_THROW(refused([](auto& p) { p.min_p = -0.1; }), Error, "min_p = -0.1");
  EXPECT_THROW(refused([](auto& p) { p.repetition_penalty = 0.0; }), Error,
               "repetition_penalty = 0");
  EXPECT_THROW(refused([](auto& p) { p.max_tokens = 0; }), Error, "max_tokens = 0");
  EXPECT_THROW(refused([](auto& p) { p.min_tokens = 200; }), Error, "min_tokens = 200");
  EXPECT_THROW(refused([](auto& p) { p.end_ids = {10}; }), Error, "end_ids holds id 10");
  EXPECT_THROW(refused([](auto& p) { p.bad_words = {{1}, {}}; }), Error, "bad_words[1]");
  EXPECT_THROW(refused([](auto& p) { p.stop_words = {{-1}}; }), Error, "stop_words holds id -1");
  EXPECT_THROW(refused([](auto& p) {
                 p.repetition_penalty = 1.1;
                 p.presence_penalty = 0.5;
               }),
               Error, "repetition_penalty = 1.1 and presence_penalty = 0.5");
  SamplingParams().validate(10);
}
