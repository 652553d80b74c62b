#include "ft/core/buffer.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

namespace flexq_ft {

namespace {

constexpr size_t kAlignment = 64;  // one cache line, and the widest vector load
std::array<std::atomic<size_t>, kMemoryKinds> g_in_use{};

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

std::array<size_t, kMemoryKinds> memory_in_use() {
  std::array<size_t, kMemoryKinds> out{};
  for (int i = 0; i < kMemoryKinds; ++i) out[i] = g_in_use[i].load();
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

Buffer::Buffer(size_t bytes, MemoryKind kind) : bytes_(bytes), kind_(kind) {
  shape_ = {static_cast<int64_t>(bytes)};
  if (bytes == 0) return;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_ = rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
  if (data_ == nullptr) {
    const size_t wanted = std::exchange(bytes_, 0);
    throw Error(ErrorKind::kOutOfMemory,
                detail::join("cannot allocate ", wanted, " bytes for ", to_string(kind)), {},
                "use a smaller --max-len or --max-batch, or another scheme");
  }
  g_in_use[static_cast<int>(kind_)] += bytes_;
}

Buffer::Buffer(DataType dtype, Shape shape, MemoryKind kind)
    : Buffer(static_cast<size_t>(shape.count()) * size_of(dtype), kind) {
  dtype_ = dtype;
  shape_ = shape;
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    dtype_ = other.dtype_;
    shape_ = other.shape_;
    kind_ = other.kind_;
  }
  return *this;
}

Buffer::~Buffer() { release(); }

void Buffer::release() {
  if (data_ == nullptr) return;
  std::free(data_);
  g_in_use[static_cast<int>(kind_)] -= bytes_;
  data_ = nullptr;
  bytes_ = 0;
}

Tensor Buffer::tensor(DataType dtype, Shape shape) const {
  const size_t wanted = static_cast<size_t>(shape.count()) * size_of(dtype);
  FLEXQ_FT_CHECK_LE(wanted, bytes_, "view of a ", to_string(kind_), " buffer as ", shape);
  return Tensor(data_, dtype, shape);
}

}  // namespace flexq_ft
