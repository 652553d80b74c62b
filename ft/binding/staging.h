// Staging: NumPy arrays as tensors of the device that the ops run on; on a GPU through copies, so
// that tests call the same op with the same arrays on both.
#pragma once

#include <pybind11/numpy.h>

#include <deque>
#include <utility>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

class Staging {
 public:
  Staging();  // on the device of use_device()

  Device device() const { return device_; }
  Stream stream() const { return {}; }  // the default queue, which waits for everything

  ConstTensor in(const pybind11::array& array);
  ConstTensor optional_in(const pybind11::object& array);  // an undefined tensor for None
  Tensor inout(pybind11::array& array);                    // changed in place by finish()
  Tensor scratch(DataType dtype, Shape shape);             // filled with NaN patterns

  // Waits, and copies what ops wrote into the arrays. A no-op on the CPU.
  void finish();

 private:
  Device device_;
  std::deque<Buffer> buffers_;
  std::vector<std::pair<Tensor, Tensor>> back_;  // host, device
};

// The device of the ops that are called from now on: "cpu" or "cuda".
void use_device(const std::string& name);
const char* device_in_use();

}  // namespace flexq_ft
