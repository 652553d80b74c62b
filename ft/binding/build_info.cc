// build_info(): what this module was built from and with, for doctor and result rows.
#include <pybind11/pybind11.h>

#include <string>

#include "flexq_kernels/cpu/isa.h"
#include "ft/binding/module.h"
#include "ft/comm/mpi_library.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"

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
  info["cuda"] = cuda::built();
  info["cuda_architectures"] = cuda::architectures();
  info["commit"] = FLEXQ_FT_COMMIT;
  return info;
}

py::list gpus() {
  py::list out;
  for (int i = 0; i < cuda::device_count(); ++i) {
    const cuda::DeviceInfo info = cuda::device_info(i);
    py::dict gpu;
    gpu["name"] = info.name;
    gpu["compute_capability"] = detail::join(info.major, ".", info.minor);
    gpu["multiprocessors"] = info.multiprocessors;
    gpu["l2_bytes"] = info.l2_bytes;
    gpu["total_bytes"] = info.total_bytes;
    out.append(gpu);
  }
  return out;
}

}  // namespace

void bind_build_info(py::module_& module) {
  module.def("build_info", &build_info);
  module.def("gpus", &gpus, "The GPUs that this build can use; empty without CUDA or a driver.");
}

}  // namespace flexq_ft
