// Buffer: owned memory of the host or of the current GPU, counted by what it is for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

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
  friend class MemoryRegion;

  void release();

  void* data_ = nullptr;
  std::shared_ptr<void> region_;  // that it was cut from; null: it has memory of its own
  size_t bytes_ = 0;
  DataType dtype_ = DataType::kUint8;
  Shape shape_;
  MemoryKind kind_ = MemoryKind::kWorkspace;
  Device device_ = Device::kCpu;
};

// One allocation that buffers are cut from, one behind the other. A GPU gives memory in pieces of
// 2 MiB: of hundreds of weights, each by itself, every one would leave a part of a piece unused.
// The memory lives as long as the region or any buffer of it.
class MemoryRegion {
 public:
  // Throws Error{kOutOfMemory} as a Buffer does.
  MemoryRegion(size_t bytes, MemoryKind kind, Device device);
  MemoryRegion(const MemoryRegion&) = delete;
  MemoryRegion& operator=(const MemoryRegion&) = delete;

  // Of the region, where there is room; else memory of its own.
  Buffer cut(DataType dtype, Shape shape);

 private:
  std::shared_ptr<void> memory_;
  size_t bytes_, used_ = 0;
  MemoryKind kind_;
  Device device_;
};

}  // namespace flexq_ft
