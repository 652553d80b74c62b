// What a choice of kernel depends on.
#pragma once

#include <cstddef>
#include <string>

namespace flexq_kernels::gpu {

struct Device {
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  size_t shared_per_block = 0;  // bytes, at most, opted in
  size_t shared_per_multiprocessor = 0;
  size_t l2_bytes = 0;
  std::string name;

  int capability() const { return 10 * major + minor; }
};

// Of the current device, asked once per device. Throws std::runtime_error where there is none.
const Device& current_device();

}  // namespace flexq_kernels::gpu
