#include "ft/decoding/scheduler.h"

#include <algorithm>

#include "ft/core/check.h"

namespace flexq_ft {

std::ostream& operator<<(std::ostream& out, const StepItem& item) {
  return out << "StepItem{slot=" << item.slot << ", begin=" << item.begin
             << ", count=" << item.count << ", last=" << (item.last ? "true" : "false") << "}";
}

std::vector<StepItem> plan_step(const std::vector<SlotState>& slots, int64_t prefill_tokens) {
  FLEXQ_FT_CHECK_LE(1, prefill_tokens, "a step without room for a prompt");
  std::vector<StepItem> plan;
  std::vector<int64_t> prompts;
  for (size_t i = 0; i < slots.size(); ++i) {
    const SlotState& slot = slots[i];
    if (!slot.running) continue;
    FLEXQ_FT_CHECK_LT(slot.cached, slot.tokens, "slot ", i, " has nothing to compute");
    const int64_t index = static_cast<int64_t>(i);
    if (slot.cached < slot.prompt) {
      prompts.push_back(index);
    } else {
      plan.push_back({index, slot.cached, slot.tokens - slot.cached, true});
    }
  }
  std::sort(prompts.begin(), prompts.end(), [&](int64_t a, int64_t b) {
    return slots[static_cast<size_t>(a)].arrival < slots[static_cast<size_t>(b)].arrival;
  });
  int64_t left = prefill_tokens;
  for (int64_t index : prompts) {
    if (left == 0) break;
    const SlotState& slot = slots[static_cast<size_t>(index)];
    const int64_t count = std::min(left, slot.tokens - slot.cached);
    plan.push_back({index, slot.cached, count, slot.cached + count == slot.tokens});
    left -= count;
  }
  return plan;
}

}  // namespace flexq_ft
