// DeviceComm: the collectives, for the Python side and for tests.
#include "ft/comm/device_comm.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "ft/binding/module.h"
#include "ft/comm/host_bootstrap.h"
#include "ft/comm/nccl_comm.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::string broadcast(DeviceComm& comm, std::string data, int root) {
  py::gil_scoped_release nogil;
  uint64_t bytes = data.size();
  comm.broadcast(&bytes, sizeof(bytes), root);
  data.resize(bytes);
  comm.broadcast(data.data(), bytes, root);
  return data;
}

FloatArray all_reduce(DeviceComm& comm, const FloatArray& x) {
  FloatArray sum(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  std::copy_n(x.data(), x.size(), sum.mutable_data());
  const Tensor view(sum.mutable_data(), DataType::kFp32, {x.size()});
  py::gil_scoped_release nogil;
  comm.all_reduce(view, Stream{});
  return sum;
}

FloatArray all_gather(DeviceComm& comm, const FloatArray& x) {
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  shape.insert(shape.begin(), comm.size());
  FloatArray out(shape);
  const ConstTensor from(x.data(), DataType::kFp32, {x.size()});
  const Tensor to(out.mutable_data(), DataType::kFp32, {comm.size(), x.size()});
  py::gil_scoped_release nogil;
  comm.all_gather(to, from, Stream{});
  return out;
}

py::dict nccl_info() {
  const nccl::Api& api = nccl::open();
  py::dict info;
  info["path"] = api.path;
  info["version"] = nccl::version_text(api.version);
  return info;
}

py::bytes nccl_unique_id() {
  const nccl::UniqueId id = nccl::unique_id();
  return py::bytes(id.bytes, sizeof(id.bytes));
}

std::shared_ptr<DeviceComm> nccl_comm(int rank, int size, const std::string& unique_id,
                                      std::shared_ptr<DeviceComm> host) {
  nccl::UniqueId id;
  if (unique_id.size() != sizeof(id.bytes)) {
    throw Error(ErrorKind::kConfig,
                "an NCCL id has 128 bytes, and " + std::to_string(unique_id.size()) + " were given",
                {}, "give all ranks what nccl_unique_id() returned on one of them");
  }
  std::copy_n(unique_id.data(), unique_id.size(), id.bytes);
  if (!host) host = size > 1 ? make_mpi_comm() : make_single_comm();
  return make_nccl_comm(rank, size, id, std::move(host));
}

}  // namespace

void bind_comm(py::module_& module) {
  py::class_<DeviceComm, std::shared_ptr<DeviceComm>>(module, "DeviceComm")
      .def_property_readonly("rank", &DeviceComm::rank)
      .def_property_readonly("size", &DeviceComm::size)
      .def("barrier", &DeviceComm::barrier, py::call_guard<py::gil_scoped_release>())
      .def(
          "broadcast",
          [](DeviceComm& comm, const py::bytes& data, int root) {
            return py::bytes(broadcast(comm, data, root));
          },
          py::arg("data"), py::arg("root") = 0)
      .def("all_reduce", &all_reduce, py::arg("x"))
      .def("all_gather", &all_gather, py::arg("x"))
      .def(
          "abort", [](DeviceComm&, int code) { make_host_bootstrap()->abort(code); },
          py::arg("code"));
  module.def("single_comm", &make_single_comm);
  module.def("mpi_comm", &make_mpi_comm);
  module.def("nccl_unique_id", &nccl_unique_id);
  module.def("nccl_comm", &nccl_comm, py::arg("rank"), py::arg("size"), py::arg("unique_id"),
             py::arg("host") = py::none());
  module.def("nccl_info", &nccl_info);
}

}  // namespace flexq_ft
