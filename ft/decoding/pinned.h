// Pinned: host memory that a GPU copies to and from behind the host's back.
#pragma once

#include "ft/core/cuda.h"

namespace flexq_ft {

class Pinned {
 public:
  explicit Pinned(size_t bytes) : data_(cuda::allocate_pinned(bytes)) {}
  ~Pinned() { cuda::release_pinned(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

}  // namespace flexq_ft
