// DeviceUpload: host memory to a GPU at the speed of the files. Two pinned blocks take turns: while
// one is copied, the caller fills the other.
#pragma once

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

class DeviceUpload {
 public:
  static constexpr size_t kBlockBytes = size_t{64} << 20;

  explicit DeviceUpload(size_t block_bytes = kBlockBytes);  // on the current GPU
  ~DeviceUpload();                                          // waits for what is on its way
  DeviceUpload(const DeviceUpload&) = delete;
  DeviceUpload& operator=(const DeviceUpload&) = delete;

  Stream stream() { return queue_.stream(); }

  size_t block_bytes() const { return scratch_.bytes(); }

  // The block whose turn it is, of block_bytes(), once its last copy is done.
  void* stage();

  // The first bytes of the staged block to the GPU; the other block's turn begins.
  void copy(void* to, size_t bytes);

  // As copy, into device memory that the next one overwrites in the queue's order: for a kernel
  // that reads it on stream().
  void* copy_to_scratch(size_t bytes);

  void finish();

 private:
  struct Block {
    cuda::Event copied;
    void* data;  // last: where it cannot be had the event still ends
    explicit Block(size_t bytes);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
  };

  cuda::Queue queue_;
  Block blocks_[2];
  int turn_ = 0;
  Buffer scratch_;
};

}  // namespace flexq_ft
