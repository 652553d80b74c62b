// Rows of logits: which fault of several is reported, and what a score refuses.
#include "ft/decoding/sampler.h"

#include <cmath>
#include <limits>

#include "ft/core/error.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST(of_several_faulty_rows_the_first_is_named_whatever_the_threads_do) {
  const SamplingParams params;
  const std::vector<int64_t> none;
  for (int i = 0; i < 50; ++i) {
    std::vector<float> logits(8 * 3, 1.0f);
    logits[2 * 3] = logits[5 * 3] = logits[7 * 3] = NAN;
    std::vector<SampleRow> rows;
    for (int64_t slot = 10; slot < 18; ++slot) rows.push_back({slot, &params, &none, &none, 0});
    EXPECT_THROW(sample_rows(Tensor(logits.data(), DataType::kFp32, {8, 3}), rows), Error,
                 "slot 12: the model's logits are not finite: token 0 of 3 has nan");
  }
}

TEST(a_score_refuses_an_infinity_that_its_sum_would_hide) {
  for (const float bad : {-kInf, kInf, static_cast<float>(NAN)}) {
    const std::vector<float> logits = {1, 2, 3, 1, 2, bad};
    EXPECT_THROW(score_rows(ConstTensor(logits.data(), DataType::kFp32, {2, 3}), {0, 1}, 40), Error,
                 "position 41: the model's logits are not finite: token 2 of 3");
  }
}

TEST(a_score_is_the_log_softmax_of_the_target_and_ties_go_to_the_lowest_id) {
  const std::vector<float> logits = {0, 1, 1, 300, -300, 0};
  const auto scores = score_rows(ConstTensor(logits.data(), DataType::kFp32, {2, 3}), {0, 1}, 0);
  EXPECT_EQ(scores[0].argmax, 1);
  EXPECT(std::fabs(scores[0].logprob + std::log(1 + 2 * std::exp(1.0))) < 1e-6);
  EXPECT_EQ(scores[1].argmax, 0);
  EXPECT_EQ(scores[1].logprob, -600.0f);
}
