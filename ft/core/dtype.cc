#include "ft/core/dtype.h"

namespace flexq_ft {

namespace {
constexpr DataType kAll[] = {DataType::kFp32, DataType::kFp16,  DataType::kBf16,
                             DataType::kInt8, DataType::kInt32, DataType::kUint8};
}  // namespace

const char* to_string(DataType dtype) {
  switch (dtype) {
    case DataType::kFp32:
      return "fp32";
    case DataType::kFp16:
      return "fp16";
    case DataType::kBf16:
      return "bf16";
    case DataType::kInt8:
      return "int8";
    case DataType::kInt32:
      return "int32";
    case DataType::kUint8:
      return "uint8";
  }
  return "unknown";
}

bool parse_dtype(const std::string& text, DataType* out) {
  for (DataType dtype : kAll) {
    if (text == to_string(dtype)) {
      *out = dtype;
      return true;
    }
  }
  return false;
}

std::ostream& operator<<(std::ostream& out, DataType dtype) { return out << to_string(dtype); }

}  // namespace flexq_ft
