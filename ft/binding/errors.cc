// flexq_ft::Error becomes the class of flexq_ft.errors with the name of its kind.

#include "ft/binding/module.h"
#include "ft/core/error.h"

namespace py = pybind11;

namespace flexq_ft {

void bind_errors(py::module_& module) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      const py::object type = py::module_::import("flexq_ft.errors").attr(to_string(error.kind()));
      const py::object instance =
          type(error.what(), py::arg("cause") = error.cause(), py::arg("hint") = error.hint());
      PyErr_SetObject(type.ptr(), instance.ptr());
    }
  });
  // For the test that compares both languages' tables.
  py::dict codes;
  for (ErrorKind kind : {ErrorKind::kConfig, ErrorKind::kWeight, ErrorKind::kDevice,
                         ErrorKind::kLaunch, ErrorKind::kOutOfMemory, ErrorKind::kInternal}) {
    codes[to_string(kind)] = exit_code(kind);
  }
  module.attr("ERROR_EXIT_CODES") = codes;
}

}  // namespace flexq_ft
