// What measuring needs: the memory's read rate, and the state of the GPUs.
#include "ft/bench/read_stream.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "ft/binding/module.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

double read_bandwidth(const std::string& device, int gpu, int threads, size_t bytes, int passes) {
  if (device != "cpu" && device != "cuda") {
    throw Error(ErrorKind::kConfig, detail::join("device \"", device, "\" is not known"), {},
                "use cpu or cuda");
  }
  const ReadStreamOptions options{bytes, passes};
  return device == "cpu" ? measure_read_stream_cpu(options, threads)
                         : measure_read_stream_gpu(options, gpu);
}

void check_gpu(int gpu) {
  const int count = cuda::device_count();
  if (gpu >= 0 && gpu < count) return;
  throw Error(ErrorKind::kDevice, detail::join("there is no GPU ", gpu),
              count == 0 ? cuda::no_device_cause() : detail::join("this process sees ", count),
              "--device cpu, or another CUDA_VISIBLE_DEVICES");
}

void use_gpu(int gpu) {
  check_gpu(gpu);
  cuda::use_device(gpu);
}

// Asking for its free memory makes a context on the GPU, which holds some.
size_t gpu_free_bytes(int gpu) {
  check_gpu(gpu);
  const int before = cuda::current_device();
  cuda::use_device(gpu);
  const size_t free = cuda::free_bytes();
  cuda::use_device(before);
  return free;
}

py::dict cuda_versions() {
  py::dict out;
  out["driver"] = cuda::driver_version();
  out["runtime"] = cuda::runtime_version();
  return out;
}

}  // namespace

void bind_bench(py::module_& module) {
  module.def("measure_read_bandwidth", &read_bandwidth, py::kw_only(), py::arg("device") = "cpu",
             py::arg("gpu") = 0, py::arg("threads") = 0, py::arg("bytes") = 0,
             py::arg("passes") = 30, py::call_guard<py::gil_scoped_release>(),
             "Bytes per second: the median of passes that each read a whole buffer once.");
  module.def("use_gpu", &use_gpu, py::arg("gpu"), "The calling thread's GPU from now on.");
  module.def("gpu_free_bytes", &gpu_free_bytes, py::arg("gpu"));
  module.def("gpu_peer_access", &cuda::peer_access, py::arg("from_gpu"), py::arg("to_gpu"));
  module.def("no_gpu_cause", &cuda::no_device_cause, "Why gpus() is empty.");
  module.def("cuda_versions", &cuda_versions,
             "The newest CUDA that the driver runs, and the one linked; empty without CUDA.");
}

}  // namespace flexq_ft
