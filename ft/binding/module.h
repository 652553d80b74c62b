#pragma once

#include <pybind11/pybind11.h>

namespace flexq_ft {

// Each adds its names to the module; each is defined in the .cc of its name.
void bind_errors(pybind11::module_& module);
void bind_kernels(pybind11::module_& module);
void bind_ops(pybind11::module_& module);
void bind_sampling(pybind11::module_& ops);

}  // namespace flexq_ft
