// W6Ax GEMM on a GPU: what its operands look like in device memory. The families of kernels
// have a header each beside this one; all take these structs.
//
// Pointers are to memory of the current device, aligned to 16 bytes. Nothing here allocates or
// synchronises. A problem that a family does not take throws std::invalid_argument with the
// numbers.
#pragma once

#include <cstdint>

#include "flexq_kernels/gemm.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quantize.h"

namespace flexq_kernels::gpu {

// Where the codes of a token's group lie inside its 128 bytes.
enum class CodeOrder : uint8_t {
  kNatural,  // k ascending
  // fragment_word (activation_order.h): all that lane t of a quad needs of mma.m16n8k32's B operand
  // is 32 contiguous bytes, in the order of its use.
  kFragment,
};

// Codes as on disk (pack.h); scales re-tiled by tile_scales: fp16 bits
// [row_tiles(n)][group_count(k)][16], zeros for rows past n.
struct Weight {
  const uint8_t* codes = nullptr;
  const uint16_t* scales = nullptr;
};

// Groups of 128, zero codes past k. Scales are group by group, so that those of neighbouring tokens
// lie side by side.
struct Activations {
  const int8_t* codes = nullptr;  // [m][group_count(k) * 128]
  const float* scales = nullptr;  // [group_count(k)][scale_stride]
  int64_t scale_stride = 0;       // at least m, a multiple of 4 (scale_stride_of(m) is the least)
  CodeOrder order = CodeOrder::kNatural;
};

constexpr int64_t scale_stride_of(int64_t m) { return m > 0 ? (m + 3) / 4 * 4 : 4; }

// What a product of a feed-forward's gate and up ends with: h = act(gate) * up, rounded once. The
// weight's rows lie in bands of eight, in turn: gate 0 … 7 | up 0 … 7 | gate 8 … 15 | … .
enum class Gate : uint8_t { kNone, kSilu, kRelu, kGelu };  // gelu: the tanh approximation

// y [m, n] = round(product + bias), then round(y + residual) if there is one. With a gate y is h
// [m, n / 2] of the unrounded product + bias, and there is no residual; takes_gate (candidate.h)
// says which candidates can.
struct Output {
  void* values = nullptr;  // [m][n] of `type`, or [m][n / 2] with a gate
  FloatType type = FloatType::kFp32;
  const float* bias = nullptr;     // [n] fp32, or null
  const void* residual = nullptr;  // [m][n] of `type`, or null; may be `values`
  Gate gate = Gate::kNone;
};

// How a kernel is put on its stream. Programmatic: the kernel in front in the stream calls
// pdl_launch_dependents() (dependent_launch.cuh), and this one may start before it has ended.
struct Launch {
  void* stream = nullptr;  // cudaStream_t
  bool programmatic = false;
};

}  // namespace flexq_kernels::gpu
