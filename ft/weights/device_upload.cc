#include "ft/weights/device_upload.h"

#include "ft/core/check.h"

namespace flexq_ft {

DeviceUpload::Block::Block(size_t bytes) : data(cuda::allocate_pinned(bytes)) {}

DeviceUpload::Block::~Block() { cuda::release_pinned(data); }

DeviceUpload::DeviceUpload(size_t block_bytes)
    : blocks_{Block(block_bytes), Block(block_bytes)},
      scratch_(block_bytes, MemoryKind::kWorkspace, Device::kCuda) {}

DeviceUpload::~DeviceUpload() {
  try {
    finish();
  } catch (const Error&) {
    // A load that failed is being taken down; its own error is the one to report.
  }
}

void* DeviceUpload::stage() {
  blocks_[turn_].copied.wait();
  return blocks_[turn_].data;
}

void DeviceUpload::copy(void* to, size_t bytes) {
  FLEXQ_FT_CHECK_LE(bytes, block_bytes(), "a staged block");
  Block& block = blocks_[turn_];
  cuda::copy(to, block.data, bytes, stream());
  block.copied.record(stream());
  turn_ = 1 - turn_;
}

void* DeviceUpload::copy_to_scratch(size_t bytes) {
  copy(scratch_.data(), bytes);
  return scratch_.data();
}

void DeviceUpload::finish() { cuda::synchronize(stream()); }

}  // namespace flexq_ft
