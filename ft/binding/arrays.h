// NumPy arrays as tensors and back, for the bindings. bf16 is ml_dtypes.bfloat16.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "ft/core/tensor.h"

namespace flexq_ft {

// A view of a C-contiguous array of a known dtype; throws Error{kConfig} otherwise.
ConstTensor const_tensor(const pybind11::array& array);
// The same, writable, and the array is changed in place.
Tensor mutable_tensor(pybind11::array& array);
// An undefined tensor for None.
ConstTensor optional_tensor(const pybind11::object& array);

// A new array, zeroed.
pybind11::array new_array(DataType dtype, const Shape& shape);
DataType dtype_named(const std::string& name);  // throws Error{kConfig} if unknown

}  // namespace flexq_ft
