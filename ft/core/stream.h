// The queue that device work is ordered on. On the CPU ops run at once and ignore it.
#pragma once

namespace flexq_ft {

struct Stream {
  void* handle = nullptr;  // a cudaStream_t on a GPU
};

}  // namespace flexq_ft
