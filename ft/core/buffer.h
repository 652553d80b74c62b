// Buffer: owned memory of the host or of the current GPU, counted by what it is for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "ft/core/tensor.h"

namespace flexq_ft {

enum class MemoryKind : uint8_t { kWeights, kKvCache, kActivations, kWorkspace };
constexpr int kMemoryKinds = 4;

const char* to_string(MemoryKind kind);  // "weights", "kv_cache", "activations", "workspace"

// Bytes now held by Buffers of this process on a device (all GPUs together), by kind.
std::array<size_t, kMemoryKinds> memory_in_use(Device device = Device::kCpu);

// Peak resident set of this process in bytes, as the operating system counts it.
size_t peak_resident_bytes();

class Buffer {
 public:
  Buffer() = default;
  // Uninitialised memory, aligned to 64 bytes (256 on a GPU). Throws Error{kOutOfMemory} with the
  // sizes when there is none.
  Buffer(size_t bytes, MemoryKind kind, Device device = Device::kCpu);
  Buffer(DataType dtype, Shape shape, MemoryKind kind, Device device = Device::kCpu);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool defined() const { return data_ != nullptr; }
  Device device() const { return device_; }

  // The memory as a tensor that must fit into it; without arguments, as it was made.
  Tensor tensor() const { return Tensor(data_, dtype_, shape_, device_); }
  Tensor tensor(DataType dtype, Shape shape) const;

 private:
  void release();

  void* data_ = nullptr;
  size_t bytes_ = 0;
  DataType dtype_ = DataType::kUint8;
  Shape shape_;
  MemoryKind kind_ = MemoryKind::kWorkspace;
  Device device_ = Device::kCpu;
};

}  // namespace flexq_ft
