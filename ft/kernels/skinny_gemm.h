// The product of few tokens with a large weight, bound by the bytes of the weight: every byte is
// read once, straight into the registers that the tensor cores read it from.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "ft/core/data_format.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"
#include "ft/kernels/gpu_gemm.h"

namespace flexq_ft::gpu {

constexpr int64_t kSkinnyMaxTokens = 64;

// How a product is cut. Only `warps` decides the order of a sum: with the same warps a row's bits
// are the same in every batch and under every other config.
struct SkinnyConfig {
  int rows = 16;   // of w, that is columns of y, of one block: 16, 32 or 64
  int warps = 8;   // of one block; they share its k: 4 or 8
  int stages = 4;  // 64-byte chunks of each row that a warp has in flight
  // 4 KB steps per 16 rows and warp that are asked for into L2, behind the stages, while the kernel
  // in front still runs: fills its tail or its latency with bytes, and may slow its own reads.
  int ahead = 0;

  bool operator==(const SkinnyConfig& other) const {
    return rows == other.rows && warps == other.warps && stages == other.stages &&
           ahead == other.ahead;
  }
};

std::ostream& operator<<(std::ostream& out, const SkinnyConfig& config);  // "rows=16 warps=8 …"

// m of 1 to 64, any n, rows of w and of x a multiple of 16 bytes: k % 8 == 0, or % 16 with int8.
bool skinny_gemm_takes(const GemmProblem& problem);

// All that can run a problem which is taken.
std::vector<SkinnyConfig> skinny_configs(const GemmProblem& problem);

// A good one without measurements. Its warps follow from n, k and the types alone, never from m.
SkinnyConfig skinny_default(const GemmProblem& problem, int multiprocessors);

// y [m, n] = x [m, k] · wᵀ, types and scheme as in GemmProblem, all contiguous and row-major, their
// starts aligned to 16 bytes. A programmatic launch: reads the first of w before the kernel in
// front has ended, so w must have been complete before that kernel started.
void invokeSkinnyGemm(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme,
                      const SkinnyConfig& config, Stream stream);

// The order in which the rows of w are walked, in pieces of 16 bytes (8 floats or 16 int8 values):
// the i-th chunk of 4 pieces, 64 bytes, that a warp reads starts at this piece. Chunks are dealt in
// pairs, so that one warp reads a whole line of 128 bytes.
constexpr uint32_t skinny_chunk_start(uint32_t i, uint32_t warp, uint32_t warps) {
  return 8 * (warp + warps * (i / 2)) + 4 * (i % 2);
}

// Of the types of a product.
enum class SkinnyMath : uint8_t { kFp16, kBf16, kW8Fp16, kW8Bf16, kInt8 };

// What the kernels get; sizes in pieces of 16 bytes.
struct SkinnyArgs {
  void* y = nullptr;
  const void* x = nullptr;
  const void* w = nullptr;
  int m = 0, n = 0;
  int pieces = 0;  // of a row of w
  int ahead = 0;   // of the config
};

// One per source file with instances. False: config is not among them.
bool launch_skinny_float(SkinnyMath math, const SkinnyArgs& args, const SkinnyConfig& config,
                         Stream stream);
bool launch_skinny_w8a16(SkinnyMath math, const SkinnyArgs& args, const SkinnyConfig& config,
                         Stream stream);
bool launch_skinny_int8(const SkinnyArgs& args, const SkinnyConfig& config, Stream stream);

}  // namespace flexq_ft::gpu
