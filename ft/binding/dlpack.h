// The part of DLPack that a consumer of tensors needs: the structs behind a capsule named
// "dltensor" (DLPack 0.8, the form without versions, which every library still exports).
#pragma once

#include <cstdint>

namespace flexq_ft::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };

struct Device {
  int32_t type;
  int32_t index;
};

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Type {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  Type dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: contiguous
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor* self);
};

}  // namespace flexq_ft::dlpack
