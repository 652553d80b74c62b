#include "ft/binding/staging.h"

#include <algorithm>

#include "ft/binding/arrays.h"
#include "ft/core/cuda.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

Device g_device = Device::kCpu;
constexpr int kPoison = 0xff;  // a NaN in every float type, -1 in every integer

}  // namespace

void use_device(const std::string& name) {
  if (name != "cpu" && name != "cuda") {
    throw Error(ErrorKind::kConfig, "unknown device '" + name + "'", {}, "use cpu or cuda");
  }
  if (name == "cuda") cuda::use_device(0);
  g_device = name == "cuda" ? Device::kCuda : Device::kCpu;
}

const char* device_in_use() { return to_string(g_device); }

Staging::Staging() : device_(g_device) {}

ConstTensor Staging::in(const py::array& array) {
  const ConstTensor host = const_tensor(array);
  if (device_ == Device::kCpu) return host;
  const Tensor copy = scratch(host.dtype(), host.shape());
  cuda::copy(copy.raw(), host.raw(), host.bytes(), stream());
  return copy;
}

ConstTensor Staging::optional_in(const py::object& array) {
  return array.is_none() ? ConstTensor() : in(array.cast<py::array>());
}

Tensor Staging::inout(py::array& array) {
  const Tensor host = mutable_tensor(array);
  if (device_ == Device::kCpu) return host;
  const Tensor copy = scratch(host.dtype(), host.shape());
  cuda::copy(copy.raw(), host.raw(), host.bytes(), stream());
  back_.emplace_back(host, copy);
  return copy;
}

Tensor Staging::scratch(DataType dtype, Shape shape) {
  // An empty tensor is defined too.
  const size_t bytes = static_cast<size_t>(shape.count()) * size_of(dtype);
  buffers_.emplace_back(std::max<size_t>(bytes, 1), MemoryKind::kWorkspace, device_);
  const Tensor tensor(buffers_.back().data(), dtype, shape, device_);
  if (device_ == Device::kCuda) cuda::fill(tensor.raw(), kPoison, tensor.bytes(), stream());
  return tensor;
}

void Staging::finish() {
  if (device_ == Device::kCpu) return;
  for (const auto& [host, copy] : back_) {
    cuda::copy(host.raw(), copy.raw(), host.bytes(), stream());
  }
  cuda::synchronize(stream());
}

}  // namespace flexq_ft
