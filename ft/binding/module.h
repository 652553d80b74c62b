#pragma once

#include <pybind11/pybind11.h>

namespace flexq_ft {

// Each adds its names to the module; each is defined in the .cc of its name.
void bind_bench(pybind11::module_& module);
void bind_w6ax_bench(pybind11::module_& module);
void bind_build_info(pybind11::module_& module);
void bind_comm(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_errors(pybind11::module_& module);
void bind_gpu_gemm(pybind11::module_& module);  // behind bind_ops
void bind_kernels(pybind11::module_& module);
void bind_model_folder(pybind11::module_& module);
void bind_ops(pybind11::module_& module);
void bind_readers(pybind11::module_& module);

// What bind_kernels() calls.
void bind_linear(pybind11::module_& kernels);

// What bind_ops() calls.
void bind_attention_ops(pybind11::module_& ops);
void bind_columns(pybind11::module_& ops);
void bind_gemm_ops(pybind11::module_& ops);
void bind_row_ops(pybind11::module_& ops);
void bind_sampling(pybind11::module_& ops);
void bind_skinny_gemm(pybind11::module_& ops);
void bind_w6ax_ops(pybind11::module_& ops);
void bind_weight_ops(pybind11::module_& ops);

// From a policy document; Error{kConfig} if it is none.
struct Policy;
Policy policy_from_python(const pybind11::dict& policy);

}  // namespace flexq_ft
