// The one exception type of the C++ side. Its kind decides the Python class and the exit code.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace flexq_ft {

// Same names and exit codes as the Python classes in flexq_ft.errors (a test compares the two).
enum class ErrorKind {
  kConfig,       // ConfigError, exit 2: what the user typed
  kWeight,       // WeightError, exit 3: a model folder, its files, its INI and manifest
  kDevice,       // DeviceError, exit 4: device, driver or MPI not available
  kLaunch,       // LaunchError, exit 4: ranks could not be started, or one was lost
  kOutOfMemory,  // OutOfMemoryError, exit 5
  kInternal,     // InternalError, exit 1: a broken invariant of ours
};

const char* to_string(ErrorKind kind);
int exit_code(ErrorKind kind);

// message: one sentence that names the thing and the numbers. cause and hint may be empty; they are
// printed after "cause:" and "Try:".
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string cause = {}, std::string hint = {})
      : std::runtime_error(message),
        kind_(kind),
        cause_(std::move(cause)),
        hint_(std::move(hint)) {}

  ErrorKind kind() const { return kind_; }
  const std::string& cause() const { return cause_; }
  const std::string& hint() const { return hint_; }

 private:
  ErrorKind kind_;
  std::string cause_;
  std::string hint_;
};

}  // namespace flexq_ft
