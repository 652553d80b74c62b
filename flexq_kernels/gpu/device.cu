#include "flexq_kernels/gpu/device.h"

#include <map>
#include <mutex>

#include "flexq_kernels/gpu/dependent_launch.cuh"

namespace flexq_kernels::gpu {

namespace {

Device ask(int ordinal) {
  const auto get = [ordinal](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, ordinal), "attribute of a GPU");
    return value;
  };
  Device device;
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, ordinal), "properties of a GPU");
  device.name = properties.name;
  device.major = get(cudaDevAttrComputeCapabilityMajor);
  device.minor = get(cudaDevAttrComputeCapabilityMinor);
  device.multiprocessors = get(cudaDevAttrMultiProcessorCount);
  device.shared_per_block = static_cast<size_t>(get(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  device.shared_per_multiprocessor =
      static_cast<size_t>(get(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  device.l2_bytes = static_cast<size_t>(get(cudaDevAttrL2CacheSize));
  return device;
}

}  // namespace

const Device& current_device() {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  int ordinal = 0;
  check_cuda(cudaGetDevice(&ordinal), "current GPU");
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = devices.find(ordinal);
  if (found == devices.end()) found = devices.emplace(ordinal, ask(ordinal)).first;
  return found->second;
}

}  // namespace flexq_kernels::gpu
