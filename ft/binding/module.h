#pragma once

#include <pybind11/pybind11.h>

namespace flexq_ft {

// Each adds its names to the module; each is defined in the .cc of its name.
void bind_build_info(pybind11::module_& module);
void bind_comm(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_errors(pybind11::module_& module);
void bind_kernels(pybind11::module_& module);

}  // namespace flexq_ft
