// flexq_ft._native.ops: the ops of ft/kernels on NumPy arrays, for tests and benchmarks.
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/core/check.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace flexq_ft {

namespace {

void set_threads(int threads) {
  FLEXQ_FT_CHECK_LE(1, threads, "threads");
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

}  // namespace

void bind_ops(py::module_& module) {
  py::module_ ops = module.def_submodule(
      "ops", "The runtime's ops on NumPy arrays, for tests. 16-bit floats: float16, bfloat16.");
  bind_row_ops(ops);
  bind_attention_ops(ops);
  bind_gemm_ops(ops);
  bind_columns(ops);
  bind_sampling(ops);
  bind_weight_ops(ops);
  bind_skinny_gemm(ops);
  bind_w6ax_ops(ops);
  ops.def("use_device", &use_device, py::arg("name"),
          "Where the ops of this module run from now on: \"cpu\" or \"cuda\".");
  ops.def("device", &device_in_use);
  ops.def("set_threads", &set_threads, py::arg("threads"), "Threads of the calling thread's ops.");
}

}  // namespace flexq_ft
