// A packed weight as a matrix of fp16 or bf16: for weight-only products of more tokens than
// weight_only_gemm.h takes, with a GEMM of floats.
//
// Each value is rounded once, and that is an error that the weight-only kernels do not have: in
// fp16 up to 2^-11 of a value (2^-25 where it is subnormal), in bf16 2^-8. So a caller asks for it;
// no product of this library takes this way by itself.
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/gemm.h"

namespace flexq_kernels::gpu {

// values [n, k] of `type`, kFp16 or kBf16 <- round(float(code) * float(scale)). What does not fit
// the type becomes an infinity. Fastest where k is a multiple of 8. Nothing allocates or
// synchronises; throws std::invalid_argument for sizes outside 0 … kMaxExtent (k: from 1) and for
// pointers that are null or off a 16-byte boundary. n == 0 is a no-op.
void dequantize_int6(void* values, FloatType type, const Weight& w, int64_t n, int64_t k,
                     const Launch& launch);

}  // namespace flexq_kernels::gpu
