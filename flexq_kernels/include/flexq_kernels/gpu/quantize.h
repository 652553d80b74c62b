// The activation quantiser on a GPU, alone (docs/numerics.md): the codes and scales of
// quantize_activations(group = 128), bit for bit, in the order that a GEMM wants.
//
// Pointers are to memory of the current device, aligned to 16 bytes. Nothing allocates or
// synchronises. Wrong arguments throw std::invalid_argument. m == 0 is a no-op.
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/quantize.h"

namespace flexq_kernels::gpu {

// Activations that are still to be written.
struct ActivationBuffers {
  int8_t* codes = nullptr;   // [m][group_count(k) * 128]
  float* scales = nullptr;   // [group_count(k)][scale_stride]
  int64_t scale_stride = 0;  // at least m, a multiple of 4
  CodeOrder order = CodeOrder::kNatural;

  Activations view() const { return {codes, scales, scale_stride, order}; }
};

// x [m, k] of `type`; act_bits 6 or 8. Codes past k are zeros; scales of rows m …
// scale_stride_of(m) are zeros, those past them are not written. Fastest where k is a multiple
// of 8.
void quantize_activations(const ActivationBuffers& out, const void* x, FloatType type, int64_t m,
                          int64_t k, int act_bits, const Launch& launch);

}  // namespace flexq_kernels::gpu
