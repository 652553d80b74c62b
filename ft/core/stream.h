// The queue that device work is ordered on. On the CPU ops run at once and ignore it.
#pragma once

namespace flexq_ft {

// What was put on a GPU's queue last: one of our kernels may start before another of ours ends
// (programmatic dependent launch), never before a library's kernel or a copy.
struct StreamTail {
  bool our_kernel = false;
};

struct Stream {
  void* handle = nullptr;      // a cudaStream_t on a GPU
  StreamTail* tail = nullptr;  // of that queue; null: every edge is a full one
};

}  // namespace flexq_ft
