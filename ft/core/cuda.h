// The CUDA runtime for code that is compiled without its headers: memory, copies, queues. A build
// without CUDA has no devices, and every other call throws Error{kDevice}.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "ft/core/stream.h"

namespace flexq_ft::cuda {

bool built();                   // was this library compiled with CUDA
const char* architectures();    // it was compiled for: "90a" or "80,86,89,90a"; "" without CUDA
int device_count();             // 0 without a driver or a device
std::string no_device_cause();  // why device_count() is 0, for errors

struct DeviceInfo {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;
  int multiprocessors = 0;
  size_t l2_bytes = 0;
  size_t shared_bytes = 0;  // most of one block
  size_t total_bytes = 0;
  double memory_bytes_per_second = 0.0;  // by its data sheet, not measured
};
DeviceInfo device_info(int device);
std::string driver_version();   // "13.0", the newest CUDA that the driver runs; "" without one
std::string runtime_version();  // "13.0"
bool peer_access(int from, int to);

int current_device();
void use_device(int device);  // of the calling thread
size_t free_bytes();          // of the current device

// Null when there is no memory; other faults throw. Never from a pool: a peer can map it.
void* allocate(size_t bytes);
void release(void* data) noexcept;
void* allocate_pinned(size_t bytes);  // throws Error{kOutOfMemory} with the size
void release_pinned(void* data) noexcept;

// Between any two memories. With pinned host memory it returns before the copy has happened.
void copy(void* to, const void* from, size_t bytes, Stream stream);
void fill(void* to, int byte, size_t bytes, Stream stream);

// Waits; then throws what went wrong on the device since the last call.
void synchronize(Stream stream);

// An owned queue on the current device.
class Queue {
 public:
  Queue();
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  Stream stream() { return {handle_, &tail_}; }

 private:
  void* handle_ = nullptr;
  StreamTail tail_;
};

// A point of a queue.
class Event {
 public:
  explicit Event(bool timed = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  // Within a capture: recorded at every launch of the graph.
  void record_in_graph(Stream stream);
  bool done() const;
  void wait() const;                         // of the host
  float since_ms(const Event& start) const;  // both timed and done

 private:
  void* handle_ = nullptr;
};

// The work of a queue, recorded once and launched many times.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Records what `work` puts on the stream; nothing runs. What work throws is thrown on.
  void capture(Stream stream, const std::function<void()>& work);
  bool captured() const { return handle_ != nullptr; }
  size_t nodes() const { return nodes_; }
  void launch(Stream stream);

 private:
  void* handle_ = nullptr;
  size_t nodes_ = 0;
};

}  // namespace flexq_ft::cuda
