// How long a config of the wgmma family takes: what orders them where no table has measured them.
#pragma once

#include "flexq_kernels/gpu/wgmma_gemm.h"

namespace flexq_kernels::gpu {

// The tiles of the family, and the time of a group of one on an H200, in microseconds.
struct WgmmaTileTime {
  int rows, tokens;
  double group_us;
};
constexpr WgmmaTileTime kWgmmaTiles[] = {{256, 128, 1.18}, {192, 128, 0.87}, {128, 256, 1.10},
                                         {128, 192, 0.98}, {128, 128, 0.71}, {128, 64, 0.45}};

// Those sliced tiles of which two blocks share a multiprocessor: until both have done a group.
constexpr WgmmaTileTime kWgmmaSharedTiles[] = {{128, 32, 0.67}, {128, 64, 0.76}};
constexpr int kWgmmaSharedTokens = 64;  // of these, at most

// Microseconds of a launch behind another one, for a problem that the config takes.
double wgmma_guessed_us(const GemmProblem& problem, const WgmmaConfig& config,
                        const Device& device);

}  // namespace flexq_kernels::gpu
