// Arrays in device memory for tests of flexq_kernels alone: between guard bands, and poisoned until
// something is written.
#pragma once

#include <cuda_runtime.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/gemm.h"
#include "tests/cpp/check.h"

namespace flexq_test {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline bool no_gpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return false;
  std::printf("no GPU here: not tested\n");
  return true;
}

// A kernel that hangs must not take the machine with it: the process ends after so many seconds.
inline void end_after(unsigned seconds) {
  signal(SIGALRM, [](int) {
    const char text[] = "FAIL: out of time, a kernel hangs or the machine is too slow\n";
    if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0) _exit(4);
    _exit(3);
  });
  alarm(seconds);
}

// With the argument --small tests have fewer and smaller problems, for compute-sanitizer.
inline bool small() { return has_option("--small"); }

// Every test of a GPU begins with this: true where there is none. The process ends after a minute.
inline bool nothing_to_test() {
  if (no_gpu()) return true;
  static const bool limited = (end_after(small() ? 900 : 60), true);
  return !limited;
}

inline cudaStream_t stream() {
  static cudaStream_t created = [] {
    cudaStream_t made = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "stream");
    return made;
  }();
  return created;
}

inline flexq_kernels::gpu::Launch plain_launch() { return {stream(), false}; }
inline flexq_kernels::gpu::Launch dependent_launch() { return {stream(), true}; }

inline void synchronize(const char* after) { check_cuda(cudaStreamSynchronize(stream()), after); }

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    check_cuda(cudaMalloc(&memory_, bytes()), "memory");
    poison();
  }
  explicit DeviceArray(const std::vector<T>& values)
      : DeviceArray(static_cast<int64_t>(values.size())) {
    upload(values);
  }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return reinterpret_cast<T*>(memory_ + kBand); }
  int64_t size() const { return count_; }

  void poison() { check_cuda(cudaMemsetAsync(memory_, kPoison, bytes(), stream()), "poison"); }

  void upload(const std::vector<T>& values) {
    check_cuda(cudaMemcpyAsync(data(), values.data(), values.size() * sizeof(T),
                               cudaMemcpyHostToDevice, stream()),
               "upload");
    synchronize("upload");
  }

  // What lies there, after a look at the guard bands.
  std::vector<T> fetch(const char* name = "array") const {
    std::vector<uint8_t> all(bytes());
    check_cuda(cudaMemcpyAsync(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost, stream()),
               "fetch");
    synchronize(name);
    for (size_t i = 0; i < kBand; ++i) {
      const size_t behind = all.size() - 1 - i;
      if (all[i] == kPoison && all[behind] == kPoison) continue;
      report_failure(__FILE__, __LINE__, std::string("written beyond the ends of ") + name);
      break;
    }
    std::vector<T> values(static_cast<size_t>(count_));
    std::memcpy(values.data(), all.data() + kBand, values.size() * sizeof(T));
    return values;
  }

 private:
  static constexpr size_t kBand = 4096;
  static constexpr uint8_t kPoison = 0xff;
  size_t bytes() const { return 2 * kBand + static_cast<size_t>(count_) * sizeof(T); }

  int64_t count_;
  char* memory_ = nullptr;
};

// Bit by bit; the first element that differs is named.
template <typename T>
void expect_same(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  if (got.size() == want.size() &&
      std::memcmp(got.data(), want.data(), got.size() * sizeof(T)) == 0) {
    return;
  }
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) == 0) continue;
    std::ostringstream out;
    out << what << ": element " << i << " of " << want.size() << " is " << +got[i] << ", not "
        << +want[i];
    report_failure(__FILE__, __LINE__, out.str());
    return;
  }
}

}  // namespace flexq_test
