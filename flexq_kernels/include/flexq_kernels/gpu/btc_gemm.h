// FlexQ's own method (arXiv 2508.04405): the product by bits, for the binary tensor cores. Weights
// and activations lie in memory as bit planes, mma.m16n8k256 counts the ones of (plane AND plane),
// and the counts, each times its power of two, are the exact group sum. From there on it is the
// product of every other kernel.
//
// It reads as many bytes as they do, but needs 24 (A6) or 30 (A8) binary products where they need
// four of int8: on an H100 a fifth slower at one token, more with each. Binary products are native
// on compute capability 8.0 to 9.0; later GPUs emulate them.
//
// Pointers are to memory of the current device, aligned to 16 bytes. Nothing allocates or
// synchronises. A problem that the kernel does not take throws std::invalid_argument.
#pragma once

#include <cstdint>
#include <string>

#include "flexq_kernels/gpu/btc_layout.h"
#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// The planes of a weight (btc_pack_weight) beside its tiled scales.
struct BtcWeight {
  const uint32_t* planes = nullptr;
  const uint16_t* scales = nullptr;
};

// The planes of activations (btc_pack_activations) beside their scales.
struct BtcActivations {
  const uint32_t* planes = nullptr;
  const float* scales = nullptr;  // as in Activations
  int64_t scale_stride = 0;
};

// planes [packed_bytes(n, k)] <- codes as on disk; may be the same memory. Products read weights
// before they wait for what is in front of them: the first one behind this is an ordinary launch.
void btc_pack_weight(uint32_t* planes, const uint8_t* codes, int64_t n, int64_t k,
                     const Launch& launch);

// planes [btc_activation_bytes(m, k, act_bits)] <- the codes of x, in either order. The scales of
// x stay where they are.
void btc_pack_activations(uint32_t* planes, const Activations& x, int64_t m, int64_t k,
                          int act_bits, const Launch& launch);

// Empty if the kernel takes the problem, otherwise why it does not.
std::string btc_why_not(const GemmProblem& problem, const Device& device);

// y = x · wᵀ. The order of a row's sum depends on k alone.
void btc_gemm(const Output& y, const BtcActivations& x, const BtcWeight& w,
              const GemmProblem& problem, const Launch& launch);

// sums [m, n, group_count(k)]: the exact int32 sums of the same loop.
void btc_group_sums(int32_t* sums, const BtcActivations& x, const BtcWeight& w,
                    const GemmProblem& problem, const Launch& launch);

}  // namespace flexq_kernels::gpu
