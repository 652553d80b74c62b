// The vectorised body of attention, one per ISA.
#pragma once

#include <cstdint>

#include "flexq_kernels/cpu/isa.h"
#include "ft/core/dtype.h"

namespace flexq_ft {

// Tokens [begin, end) of one sequence times the query heads of one KV head.
struct AttentionTask {
  void* out;      // the sequence's first token
  const void* q;  // the same
  const void* k;  // the cache
  const void* v;
  const int32_t* pages;  // of the sequence
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t context;
  int64_t kv_head;
  int64_t begin;
  int64_t end;
  DataType dtype;
};

FLEXQ_ISA_DECLARE(int64_t attention_scratch(const AttentionTask& task))  // in floats
FLEXQ_ISA_DECLARE(void attention_block(const AttentionTask& task, float* scratch))

}  // namespace flexq_ft
