#include "ft/binding/borrowed_array.h"

#include "ft/core/check.h"
#include "ft/core/error.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

using detail::join;

[[noreturn]] void refuse(const std::string& message, std::string hint = {}) {
  throw Error(ErrorKind::kConfig, message, {}, std::move(hint));
}

std::string dtype_name(const dlpack::Type& type) {
  const std::string bits = std::to_string(type.bits);
  if (type.lanes != 1) return bits + " bits in " + std::to_string(type.lanes) + " lanes";
  switch (type.code) {
    case dlpack::kInt:
      return "int" + bits;
    case dlpack::kUInt:
      return "uint" + bits;
    case dlpack::kFloat:
      return "float" + bits;
    case dlpack::kBfloat:
      return "bfloat" + bits;
    default:
      return "DLPack type " + std::to_string(type.code);
  }
}

template <typename Shape>
std::string shape_text(const Shape& shape, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) {
    text += (i > 0 ? ", " : "") + (shape[i] < 0 ? "*" : std::to_string(shape[i]));
  }
  return text + "]";
}

// The capsule of an array; an error of Python's where it refuses (a tensor that wants gradients).
py::capsule export_array(const py::object& array, const char* name) {
  if (!py::hasattr(array, "__dlpack__") || !py::hasattr(array, "__dlpack_device__")) {
    refuse(join(name, " is a ", std::string(py::str(py::type::of(array).attr("__name__"))),
                ", expected an array with __dlpack__"));
  }
  const auto device = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  if (device.first != dlpack::kCpu && device.first != dlpack::kCuda) {
    refuse(join(name, " lies on DLPack device ", device.first, ", expected 1 (CPU) or 2 (CUDA)"));
  }
  // -1: no synchronisation.
  const py::object exported = device.first == dlpack::kCuda
                                  ? array.attr("__dlpack__")(py::arg("stream") = -1)
                                  : array.attr("__dlpack__")();
  return py::cast<py::capsule>(exported);
}

}  // namespace

BorrowedArray::BorrowedArray(const py::object& array, const char* name) : name_(name) {
  const py::capsule capsule = export_array(array, name);
  managed_ = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed_ == nullptr) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // now it is ours to delete
  dtype_ = dtype_name(tensor().dtype);
  if (contiguous()) return;
  const std::string strides = shape_text(tensor().strides, static_cast<size_t>(tensor().ndim));
  const std::string what = join(name_, " is ", text(), " with strides ", strides);
  managed_->deleter(managed_);  // a constructor that throws has no destructor
  refuse(what + ", expected a contiguous array", join("pass ", name, ".contiguous()"));
}

BorrowedArray::~BorrowedArray() {
  if (managed_->deleter != nullptr) managed_->deleter(managed_);
}

std::string BorrowedArray::text() const {
  const std::string device =
      on_gpu() ? " on cuda:" + std::to_string(device_index()) : std::string(" on cpu");
  return dtype_ + shape_text(tensor().shape, static_cast<size_t>(tensor().ndim)) + device;
}

bool BorrowedArray::contiguous() const {
  if (tensor().strides == nullptr) return true;
  int64_t stride = 1;
  for (int i = tensor().ndim - 1; i >= 0; --i) {
    if (tensor().shape[i] == 0) return true;
    if (tensor().shape[i] != 1 && tensor().strides[i] != stride) return false;
    stride *= tensor().shape[i];
  }
  return true;
}

void BorrowedArray::expect(const std::string& dtype, const std::vector<int64_t>& shape,
                           const BorrowedArray& beside) const {
  bool fits = dtype_ == dtype && tensor().ndim == static_cast<int>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || tensor().shape[i] == shape[i];
  }
  if (!fits) {
    refuse(join(name_, " is ", text(), ", expected ", dtype, shape_text(shape, shape.size())));
  }
  const dlpack::Device& device = tensor().device;
  if (device.type != beside.tensor().device.type || device.index != beside.tensor().device.index) {
    refuse(join(name_, " is ", text(), ", but ", beside.name_, " is ", beside.text()),
           "move both to one device");
  }
  if (on_gpu() && reinterpret_cast<uintptr_t>(data()) % 16 != 0) {
    refuse(join(name_, " at ", data(), " does not begin on a 16-byte boundary"),
           join("pass ", name_, ".clone()"));
  }
}

}  // namespace flexq_ft
