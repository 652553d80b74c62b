#include "ft/core/error.h"
#include "ft/decoding/scheduler.h"
#include "tests/cpp/check.h"

using flexq_ft::plan_step;
using flexq_ft::SlotState;
using flexq_ft::StepItem;

namespace {

SlotState prompt(int64_t arrival, int64_t cached, int64_t tokens) {
  return {true, arrival, cached, tokens, tokens};
}

SlotState decoding(int64_t arrival, int64_t prompt_tokens, int64_t output) {
  return {true, arrival, prompt_tokens + output - 1, prompt_tokens + output, prompt_tokens};
}

void expect_plan(const std::vector<SlotState>& slots, int64_t budget,
                 const std::vector<StepItem>& expected) {
  const std::vector<StepItem> plan = plan_step(slots, budget);
  EXPECT_EQ(plan.size(), expected.size());
  for (size_t i = 0; i < plan.size() && i < expected.size(); ++i) EXPECT_EQ(plan[i], expected[i]);
}

}  // namespace

TEST(nothing_running_is_an_empty_plan) {
  expect_plan({}, 4, {});
  expect_plan({SlotState{}, SlotState{}}, 4, {});
}

TEST(prompt_of_exactly_the_budget_is_one_chunk) {
  expect_plan({prompt(0, 0, 4)}, 4, {{0, 0, 4, true}});
}

TEST(prompt_longer_than_the_budget_continues_where_it_stopped) {
  expect_plan({prompt(0, 0, 9)}, 4, {{0, 0, 4, false}});
  expect_plan({prompt(0, 4, 9)}, 4, {{0, 4, 4, false}});
  expect_plan({prompt(0, 8, 9)}, 4, {{0, 8, 1, true}});
}

TEST(decode_comes_first_and_is_outside_the_prefill_budget) {
  expect_plan({prompt(2, 0, 7), decoding(0, 5, 1), decoding(1, 3, 2)}, 4,
              {{1, 5, 1, true}, {2, 4, 1, true}, {0, 0, 4, false}});
}

TEST(earliest_prompt_is_finished_first_though_its_slot_is_higher) {
  expect_plan({prompt(7, 0, 3), prompt(5, 2, 5), prompt(6, 0, 8)}, 6,
              {{1, 2, 3, true}, {2, 0, 3, false}});
}

TEST(prompts_share_the_budget_and_the_rest_waits) {
  expect_plan({prompt(0, 0, 2), prompt(1, 0, 2), prompt(2, 0, 2)}, 4,
              {{0, 0, 2, true}, {1, 0, 2, true}});
}

TEST(finished_slot_is_left_alone) {
  SlotState finished = decoding(0, 2, 3);
  finished.running = false;
  expect_plan({finished, decoding(1, 1, 1)}, 4, {{1, 1, 1, true}});
}

TEST(budget_of_zero_and_slot_without_work_are_faults_of_ours) {
  EXPECT_THROW(plan_step({}, 0), flexq_ft::Error, "prefill_tokens");
  EXPECT_THROW(plan_step({SlotState{true, 0, 5, 5, 5}}, 4), flexq_ft::Error, "slot 0");
}
