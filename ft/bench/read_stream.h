// The rate at which memory can be read, measured: the ceiling of everything that decoding does, and
// what `flexq-ft bench` holds its times against.
#pragma once

#include <cstddef>

namespace flexq_ft {

struct ReadStreamOptions {
  size_t bytes = 0;  // 0: as many as no cache holds, or what is free
  int passes = 30;   // timed ones; the median counts
};

// Bytes per second. Each pass reads the whole buffer once and writes nothing. Throws
// Error{kOutOfMemory} if not even a small buffer can be had.
//   cpu: so many threads (0: all usable cores)
//   gpu: on that GPU, timed on the device; Error{kDevice} if there is none
double measure_read_stream_cpu(const ReadStreamOptions& options, int threads);
double measure_read_stream_gpu(const ReadStreamOptions& options, int gpu);

namespace detail {
double median(double* values, int count);  // sorts them
}

}  // namespace flexq_ft
