#include "ft/core/buffer.h"

#include <sys/resource.h>

#include <atomic>
#include <cstdlib>
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
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;  // Linux counts KiB
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
