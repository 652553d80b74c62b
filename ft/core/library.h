// Libraries that are opened at run time (MPI's half of us, cuBLASLt, NCCL), and where they may lie.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace flexq_ft {

// The folder of the module or program that this code was linked into.
std::filesystem::path own_folder();

// Folders that hold Python packages, and so NVIDIA's wheels: that of the environment which the
// module or program belongs to, then those added (the binding adds Python's own search path).
std::vector<std::filesystem::path> package_folders();
void add_package_folders(const std::vector<std::string>& folders);

struct WheelLibrary {
  const char* file;                      // "libnccl.so.2": wheels have no link names
  std::vector<const char*> wheel_paths;  // in a package folder: "nvidia/nccl/lib"
  const char* what;                      // "NCCL", for errors
  const char* hint;                      // the command that installs it
};

struct OpenedLibrary {
  void* handle = nullptr;
  std::string path;
};

// Where the loader finds it, then in the wheels, then in the system's folder. It is never closed.
// Throws Error{kDevice} with every place that was tried.
OpenedLibrary open_library(const WheelLibrary& library);

// The address of a name; Error{kDevice} if the library has it not.
void* find_symbol(const OpenedLibrary& library, const char* name);

}  // namespace flexq_ft
