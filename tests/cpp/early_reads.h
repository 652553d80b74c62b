// A step in small, of which the kernels read what is older before they wait.
#pragma once

#include <cstdint>

#include "ft/core/stream.h"

namespace flexq_test {

// On the device, each in a line of the cache of its own.
struct EarlyReads {
  alignas(128) int32_t step;
  alignas(128) int32_t copy;   // of the step, that no L1 has
  alignas(128) int32_t ended;  // has the first kernel behind the full edge?
  alignas(128) int32_t early;  // blocks that read before it had
  alignas(128) int32_t wrong;  // blocks that did not read this step
};

// Counts the step on; behind a full edge then a kernel of one block that takes its time, and two
// that all multiprocessors run, and that read the step before they wait and once more behind it.
void put_step(EarlyReads* state, flexq_ft::Stream stream);

}  // namespace flexq_test
