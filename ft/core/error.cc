#include "ft/core/error.h"

namespace flexq_ft {

const char* to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kConfig:
      return "ConfigError";
    case ErrorKind::kWeight:
      return "WeightError";
    case ErrorKind::kDevice:
      return "DeviceError";
    case ErrorKind::kLaunch:
      return "LaunchError";
    case ErrorKind::kOutOfMemory:
      return "OutOfMemoryError";
    case ErrorKind::kInternal:
      return "InternalError";
  }
  return "InternalError";
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kConfig:
      return 2;
    case ErrorKind::kWeight:
      return 3;
    case ErrorKind::kDevice:
    case ErrorKind::kLaunch:
      return 4;
    case ErrorKind::kOutOfMemory:
      return 5;
    case ErrorKind::kInternal:
      return 1;
  }
  return 1;
}

}  // namespace flexq_ft
