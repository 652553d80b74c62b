// The baseline of FlexQ's paper: cublasGemmEx on int8, neither operand transposed, default
// algorithm. No way to do a product fast: a column beside cuBLASLt's, never alone.
#pragma once

#include <cstdint>

#include "ft/core/stream.h"

namespace flexq_ft {

class CublasGemmEx {
 public:
  CublasGemmEx();  // throws Error{kDevice} if cuBLAS is not found
  ~CublasGemmEx();
  CublasGemmEx(const CublasGemmEx&) = delete;
  CublasGemmEx& operator=(const CublasGemmEx&) = delete;

  // y [m, n] int32 = x [m, k] · w [k, n]. n and k are multiples of 4.
  void run(int32_t* y, const int8_t* x, const int8_t* w, int64_t m, int64_t n, int64_t k,
           Stream stream) const;

 private:
  void* handle_ = nullptr;
};

}  // namespace flexq_ft
