#include "ft/binding/arrays.h"

#include <cstring>

namespace py = pybind11;

namespace flexq_ft {

namespace {

DataType dtype_of(const py::array& array) {
  const std::string name = py::str(array.dtype().attr("name"));
  if (name == "float32") return DataType::kFp32;
  if (name == "float16") return DataType::kFp16;
  if (name == "bfloat16") return DataType::kBf16;
  if (name == "int8") return DataType::kInt8;
  if (name == "int32") return DataType::kInt32;
  if (name == "uint8") return DataType::kUint8;
  throw Error(ErrorKind::kConfig, "arrays of " + name + " have no place here", {},
              "use float32, float16, ml_dtypes.bfloat16, int8, int32 or uint8");
}

Shape shape_of(const py::array& array) {
  switch (array.ndim()) {
    case 1:
      return {array.shape(0)};
    case 2:
      return {array.shape(0), array.shape(1)};
    case 3:
      return {array.shape(0), array.shape(1), array.shape(2)};
    case 4:
      return {array.shape(0), array.shape(1), array.shape(2), array.shape(3)};
    default:
      throw Error(ErrorKind::kConfig, detail::join("an array of ", array.ndim(), " dimensions"), {},
                  "use 1 to 4 dimensions");
  }
}

void check_contiguous(const py::array& array) {
  if ((array.flags() & py::array::c_style) != 0) return;
  throw Error(ErrorKind::kConfig, detail::join("array ", shape_of(array), " is not C-contiguous"),
              {}, "pass numpy.ascontiguousarray(x)");
}

}  // namespace

ConstTensor const_tensor(const py::array& array) {
  check_contiguous(array);
  return ConstTensor(array.data(), dtype_of(array), shape_of(array));
}

Tensor mutable_tensor(py::array& array) {
  check_contiguous(array);
  return Tensor(array.mutable_data(), dtype_of(array), shape_of(array));
}

ConstTensor optional_tensor(const py::object& array) {
  return array.is_none() ? ConstTensor() : const_tensor(array.cast<py::array>());
}

py::array new_array(DataType dtype, const Shape& shape) {
  std::vector<py::ssize_t> dims;
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  const auto make = [&]() -> py::array {
    switch (dtype) {
      case DataType::kFp32:
        return py::array(py::dtype("float32"), dims);
      case DataType::kFp16:
        return py::array(py::dtype("float16"), dims);
      case DataType::kBf16:
        return py::array(py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")),
                         dims);
      case DataType::kInt8:
        return py::array(py::dtype("int8"), dims);
      case DataType::kInt32:
        return py::array(py::dtype("int32"), dims);
      default:
        return py::array(py::dtype("uint8"), dims);
    }
  };
  py::array out = make();
  if (out.nbytes() > 0) std::memset(out.mutable_data(), 0, static_cast<size_t>(out.nbytes()));
  return out;
}

DataType dtype_named(const std::string& name) {
  DataType dtype;
  if (parse_dtype(name, &dtype)) return dtype;
  throw Error(ErrorKind::kConfig, "unknown dtype '" + name + "'", {},
              "use fp32, fp16, bf16 or int8");
}

}  // namespace flexq_ft
