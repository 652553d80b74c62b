// A tensor of another library, of the CPU or a GPU, borrowed through DLPack for the length of a
// call.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "ft/binding/dlpack.h"

namespace flexq_ft {

class BorrowedArray {
 public:
  // `name` is what messages call it. Error{kConfig} if the object has no DLPack, lies on a device
  // that is neither CPU nor CUDA, or is not contiguous. The producer is not asked to synchronise:
  // the caller runs on the stream that the producer uses.
  BorrowedArray(const pybind11::object& array, const char* name);
  ~BorrowedArray();
  BorrowedArray(const BorrowedArray&) = delete;
  BorrowedArray& operator=(const BorrowedArray&) = delete;

  bool on_gpu() const { return tensor().device.type == dlpack::kCuda; }
  int device_index() const { return tensor().device.index; }
  const std::string& dtype() const { return dtype_; }  // "float16", as NumPy calls it
  int64_t extent(int axis) const { return tensor().shape[axis]; }
  std::string text() const;  // float16[3, 4] on cuda:0

  // Error{kConfig} unless dtype and shape (-1: any extent) are these, and the device is that of the
  // other array; on a GPU also if it does not begin on a 16-byte boundary.
  void expect(const std::string& dtype, const std::vector<int64_t>& shape,
              const BorrowedArray& beside) const;

  template <typename T = void>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(tensor().data) + tensor().byte_offset);
  }

 private:
  const dlpack::Tensor& tensor() const { return managed_->tensor; }
  bool contiguous() const;

  const char* name_;
  dlpack::ManagedTensor* managed_ = nullptr;
  std::string dtype_;
};

}  // namespace flexq_ft
