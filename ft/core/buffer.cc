#include "ft/core/buffer.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

#include "ft/core/cuda.h"

namespace flexq_ft {

namespace {

constexpr size_t kAlignment = 64;  // one cache line, and the widest vector load
std::atomic<size_t> g_in_use[2][kMemoryKinds] = {};

std::atomic<size_t>& in_use(Device device, MemoryKind kind) {
  return g_in_use[static_cast<int>(device)][static_cast<int>(kind)];
}

void* allocate(size_t bytes, Device device) {
  if (device == Device::kCuda) return cuda::allocate(bytes);
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
}

void* allocate(size_t bytes, MemoryKind kind, Device device) {
  void* const data = allocate(bytes, device);
  if (data != nullptr) return data;
  throw Error(ErrorKind::kOutOfMemory,
              detail::join("cannot allocate ", bytes, " bytes for ", to_string(kind), " on the ",
                           device == Device::kCuda ? "GPU" : "host"),
              {}, "use a smaller --max-len or --max-batch, or another scheme");
}

void give_back(void* data, Device device) {
  if (device == Device::kCuda) {
    cuda::release(data);
  } else {
    std::free(data);
  }
}

}  // namespace

const char* to_string(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kWeights:
      return "weights";
    case MemoryKind::kKvCache:
      return "kv_cache";
    case MemoryKind::kActivations:
      return "activations";
    case MemoryKind::kWorkspace:
      return "workspace";
  }
  return "unknown";
}

std::array<size_t, kMemoryKinds> memory_in_use(Device device) {
  std::array<size_t, kMemoryKinds> out{};
  for (int i = 0; i < kMemoryKinds; ++i) out[i] = g_in_use[static_cast<int>(device)][i].load();
  return out;
}

size_t peak_resident_bytes() {
  // Not getrusage: its ru_maxrss survives exec, so a child starts with its parent's peak.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoull(line.substr(6)) * 1024;  // in KiB
  }
  throw Error(ErrorKind::kDevice, "the peak memory of this process is not known",
              "/proc/self/status has no VmHWM line");
}

Buffer::Buffer(size_t bytes, MemoryKind kind, Device device)
    : bytes_(bytes), kind_(kind), device_(device) {
  shape_ = {static_cast<int64_t>(bytes)};
  if (bytes == 0) return;
  data_ = allocate(bytes, kind, device);
  in_use(device_, kind_) += bytes_;
}

Buffer::Buffer(DataType dtype, Shape shape, MemoryKind kind, Device device)
    : Buffer(static_cast<size_t>(shape.count()) * size_of(dtype), kind, device) {
  dtype_ = dtype;
  shape_ = shape;
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    region_ = std::move(other.region_);
    bytes_ = std::exchange(other.bytes_, 0);
    dtype_ = other.dtype_;
    shape_ = other.shape_;
    kind_ = other.kind_;
    device_ = other.device_;
  }
  return *this;
}

Buffer::~Buffer() { release(); }

void Buffer::release() {
  if (data_ == nullptr) return;
  if (region_) {
    region_.reset();
  } else {
    give_back(data_, device_);
  }
  in_use(device_, kind_) -= bytes_;
  data_ = nullptr;
  bytes_ = 0;
}

MemoryRegion::MemoryRegion(size_t bytes, MemoryKind kind, Device device)
    : bytes_(bytes), kind_(kind), device_(device) {
  if (bytes == 0) return;
  memory_ = {allocate(bytes, kind, device), [device](void* data) { give_back(data, device); }};
}

Buffer MemoryRegion::cut(DataType dtype, Shape shape) {
  // As cudaMalloc aligns, and as copies by tensor maps want it.
  constexpr size_t kBegin = 256;
  const size_t bytes = static_cast<size_t>(shape.count()) * size_of(dtype);
  const size_t begin = (used_ + kBegin - 1) / kBegin * kBegin;
  if (bytes == 0 || begin > bytes_ || bytes > bytes_ - begin) {
    return Buffer(dtype, shape, kind_, device_);
  }
  used_ = begin + bytes;
  Buffer out;
  out.data_ = static_cast<uint8_t*>(memory_.get()) + begin;
  out.region_ = memory_;
  out.bytes_ = bytes;
  out.dtype_ = dtype;
  out.shape_ = shape;
  out.kind_ = kind_;
  out.device_ = device_;
  in_use(device_, kind_) += bytes;
  return out;
}

Tensor Buffer::tensor(DataType dtype, Shape shape) const {
  const size_t wanted = static_cast<size_t>(shape.count()) * size_of(dtype);
  FLEXQ_FT_CHECK_LE(wanted, bytes_, "view of a ", to_string(kind_), " buffer as ", shape);
  return Tensor(data_, dtype, shape, device_);
}

}  // namespace flexq_ft
