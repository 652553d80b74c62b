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

// What is put on the queue next starts when all that is there has ended. To be called around what
// is no kernel of ours, too.
inline void full_edge(Stream stream) {
  if (stream.tail != nullptr) stream.tail->our_kernel = false;
}

}  // namespace flexq_ft
