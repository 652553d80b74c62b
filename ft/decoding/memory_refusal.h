// The error of an engine that has not the memory for one sequence: the numbers, and what would fit.
#pragma once

#include "ft/decoding/memory_plan.h"

namespace flexq_ft {

struct MemoryShare {
  int rank = 0;
  int ranks = 1;     // of the host
  size_t bytes = 0;  // that are available to the rank
};

// options: of a cache of one sequence, which does not fit into the share. Throws
// Error{kOutOfMemory}.
[[noreturn]] void refuse_memory(const ModelFolder& folder, const EngineOptions& options,
                                const MemoryShare& share);

}  // namespace flexq_ft
