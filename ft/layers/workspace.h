// The memory that one step computes in, planned and allocated once for the largest step, and the
// context that every layer is called with.
#pragma once

#include <string>

#include "ft/comm/device_comm.h"
#include "ft/core/buffer.h"
#include "ft/layers/compute_device.h"

namespace flexq_ft {

// Columns of every intermediate of one rank, and the most tokens of a step.
struct WorkspaceSizes {
  Device device = Device::kCpu;
  DataType dtype = DataType::kFp32;  // compute type
  int64_t tokens = 0;
  int64_t hidden = 0;
  int64_t qkv = 0;        // (heads + 2 * kv_heads) * head_dim
  int64_t attention = 0;  // heads * head_dim
  int64_t head_dim = 0;
  int64_t up = 0;  // 2 * inter where the feed-forward is gated
  int64_t inter = 0;
  int64_t quantized_k = 0;  // widest quantised input, padded to its groups; 0: none
  int64_t quantized_groups = 0;
  int64_t decodes = 0;    // most sequences of one token in a step
  int64_t positions = 0;  // of a sequence, at most

  size_t bytes() const;
};

class Workspace {
 public:
  explicit Workspace(const WorkspaceSizes& sizes);

  const WorkspaceSizes& sizes() const { return sizes_; }

  // Views for a step of so many tokens.
  Tensor residual(int64_t tokens) const;          // [tokens, hidden]     compute type
  Tensor normed(int64_t tokens) const;            // [tokens, hidden]     compute type
  Tensor qkv(int64_t tokens) const;               // [tokens, qkv]        fp32
  Tensor rounded_qkv(int64_t tokens) const;       // [tokens, qkv]        compute type, same memory
  Tensor q(int64_t tokens) const;                 // [tokens, attention]  compute type
  Tensor attention(int64_t tokens) const;         // [tokens, attention]  compute type
  Tensor up(int64_t tokens) const;                // [tokens, up]         fp32
  Tensor inter(int64_t tokens) const;             // [tokens, inter]      compute type
  Tensor product(int64_t tokens) const;           // [tokens, hidden]     fp32, row-parallel outputs
  Tensor codes(int64_t tokens, int64_t k) const;  // [tokens, k]      int8
  // fp32 [tokens, groups], or [groups, tokens padded to 4]
  Tensor act_scales(int64_t rows, int64_t columns) const;
  Tensor attention_parts() const;  // what the attention op asks for, or undefined

 private:
  WorkspaceSizes sizes_;
  Buffer residual_, normed_, qkv_, q_, attention_, up_, inter_, product_, codes_, act_scales_;
  Buffer attention_parts_;
};

// Told of every linear's input and output, in host memory; for replay and tests.
class LinearObserver {
 public:
  virtual ~LinearObserver() = default;
  virtual void saw(const std::string& name, ConstTensor x, ConstTensor y) = 0;
};

// Told where one op of a step ends, for the times of single nodes.
class StepMarker {
 public:
  virtual ~StepMarker() = default;
  // op: "qkv". bytes: that it cannot but read, weights and cache; small tensors are not counted.
  virtual void mark(const char* op, size_t bytes) = 0;
};

// Who watches a forward pass; nobody, as a rule.
struct Watchers {
  LinearObserver* observer = nullptr;
  StepMarker* marker = nullptr;
};

struct LayerContext {
  const Workspace& workspace;
  DeviceComm& comm;
  Watchers watchers;
  ComputeDevice device;

  Stream stream() const { return device.stream; }
  void mark(const char* op, size_t bytes = 0) const {
    if (watchers.marker != nullptr) watchers.marker->mark(op, bytes);
  }
};

}  // namespace flexq_ft
