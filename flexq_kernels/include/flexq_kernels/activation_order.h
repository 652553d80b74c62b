// The two orders in which the GPU kernels take the codes of a token's group of 128
// (flexq_kernels/gpu/gemm.h): k ascending, or as the lanes of mma.m16n8k32 use them. What leaves
// the CPU's quantiser is natural; these functions translate, for tests and tools.
#pragma once

#include <cstdint>

namespace flexq_kernels {

// Where 32-bit word w (of 32, each four neighbours in k) of a group lies in fragment order: the
// word of k = 32s + 16h + 4t is w = 8s + 4h + t, and goes to 8t + 2s + h.
//
//   lane t of a quad:  | s=0 h=0 | s=0 h=1 | s=1 h=0 | ... | s=3 h=1 |   32 contiguous bytes,
//   that is                b0        b1        b0               b1       the B operands of 4 steps
constexpr int fragment_word(int w) { return w % 4 * 8 + w / 8 * 2 + w / 4 % 2; }

// fragment [groups][128] <- natural [groups][128], and back. May be the same memory. Throws
// std::invalid_argument for sizes outside 0 … kMaxExtent and for null pointers.
void to_fragment_order(int8_t* fragment, const int8_t* natural, int64_t groups);
void to_natural_order(int8_t* natural, const int8_t* fragment, int64_t groups);

}  // namespace flexq_kernels
