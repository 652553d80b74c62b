// A small kernel in front of the one under test, launched programmatically: a reader that does not
// wait for it reads what was there before.
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_test {

// Copies, after so many clocks. bytes: a multiple of 4.
void write_late(void* to, const void* from, int64_t bytes, int clocks,
                const flexq_kernels::gpu::Launch& launch);

}  // namespace flexq_test
