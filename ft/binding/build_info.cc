// build_info(): what this module was built from and with, for doctor and result rows.
#include <pybind11/pybind11.h>

#include <string>

#include "flexq_kernels/cpu/isa.h"
#include "ft/binding/module.h"
#include "ft/comm/mpi_library.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __VERSION__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

#if defined(_OPENMP)
constexpr bool kOpenMp = true;
#else
constexpr bool kOpenMp = false;
#endif

py::dict build_info() {
  py::list isas;
  for (flexq_kernels::Isa isa : flexq_kernels::available_isas()) {
    isas.append(flexq_kernels::to_string(isa));
  }
  const std::string mpi = find_mpi_library();
  py::dict info;
  info["compiler"] = kCompiler;
  info["openmp"] = kOpenMp;
  info["isas"] = isas;
  info["mpi_library"] = mpi.empty() ? py::object(py::none()) : py::object(py::str(mpi));
  info["cuda"] = false;
  info["commit"] = FLEXQ_FT_COMMIT;
  return info;
}

}  // namespace

void bind_build_info(py::module_& module) { module.def("build_info", &build_info); }

}  // namespace flexq_ft
