// What the next step computes, as plain data: no model, no memory, no clock.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

namespace flexq_ft {

// One slot as the scheduler sees it.
struct SlotState {
  bool running = false;  // admitted and not finished
  int64_t arrival = 0;   // order of admission
  int64_t cached = 0;    // tokens whose keys and values are in the cache
  int64_t tokens = 0;    // prompt and output so far; running: > cached
  int64_t prompt = 0;    // of them, prompt
};

// Tokens [begin, begin + count) of a slot's sequence.
struct StepItem {
  int64_t slot = 0;
  int64_t begin = 0;
  int64_t count = 0;
  bool last = false;  // reaches the end of the sequence: its last token gives the next one

  bool operator==(const StepItem& other) const {
    return slot == other.slot && begin == other.begin && count == other.count && last == other.last;
  }
};

std::ostream& operator<<(std::ostream& out, const StepItem& item);

// First one token of every decoding slot, in slot order; then chunks of prompts, in order of
// arrival, at most prefill_tokens together. The first prompt takes what it can, so that it is
// finished first.
std::vector<StepItem> plan_step(const std::vector<SlotState>& slots, int64_t prefill_tokens);

}  // namespace flexq_ft
