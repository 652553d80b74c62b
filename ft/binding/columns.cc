// ops.pad_columns and ops.gather_columns, for tests.
#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/kernels/gather_columns.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

py::array pad_columns(const py::array& x, int64_t columns) {
  Staging stage;
  const ConstTensor in = stage.in(x);
  FLEXQ_FT_CHECK_EQ(in.rank(), 2, "pad_columns of ", in.shape());
  py::array out = new_array(DataType::kFp32, Shape{in.dim(0), columns});
  invokePadColumns(stage.inout(out), in, stage.stream());
  stage.finish();
  return out;
}

py::array gather_columns(const py::array& parts, int64_t columns) {
  Staging stage;
  const ConstTensor in = stage.in(parts);
  FLEXQ_FT_CHECK_EQ(in.rank(), 3, "gather_columns of ", in.shape());
  py::array out = new_array(DataType::kFp32, Shape{in.dim(1), columns});
  invokeGatherColumns(stage.inout(out), in, stage.stream());
  stage.finish();
  return out;
}

}  // namespace

void bind_columns(py::module_& ops) {
  ops.def("pad_columns", &pad_columns, py::arg("x"), py::kw_only(), py::arg("columns"));
  ops.def("gather_columns", &gather_columns, py::arg("parts"), py::kw_only(), py::arg("columns"));
}

}  // namespace flexq_ft
