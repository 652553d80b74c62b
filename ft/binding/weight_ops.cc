// The ops that make weights, in flexq_ft._native.ops.
#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/kernels/random_fill.h"
#include "ft/kernels/repack.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

void repack_rows(py::array dst, const py::array& src, int64_t row, int64_t column,
                 bool row_major_nk) {
  Staging stage;
  invokeRepackRows(stage.inout(dst), stage.in(src), row, column, row_major_nk, {}, stage.stream());
  stage.finish();
}

py::array random_fill(int64_t count, const std::string& dtype, uint64_t key, float center,
                      float spread, int64_t first) {
  Staging stage;
  py::array out = new_array(dtype_named(dtype), Shape{count});
  invokeRandomFill(stage.inout(out), {key, center, spread}, first, stage.stream());
  stage.finish();
  return out;
}

}  // namespace

void bind_weight_ops(py::module_& ops) {
  ops.def("repack_rows", &repack_rows, py::arg("dst"), py::arg("src"), py::kw_only(),
          py::arg("row") = 0, py::arg("column") = 0, py::arg("row_major_nk") = true,
          "dst [n, k] is changed in place.");
  ops.def("random_fill", &random_fill, py::arg("count"), py::kw_only(), py::arg("dtype"),
          py::arg("key"), py::arg("center") = 0.0f, py::arg("spread") = 1.0f, py::arg("first") = 0);
}

}  // namespace flexq_ft
