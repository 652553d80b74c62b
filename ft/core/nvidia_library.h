// Opens NVIDIA's libraries at run time, so that neither a build nor an import needs them: from the
// loader's search path, from the wheels of a Python environment, from a CUDA toolkit.
#pragma once

#include <string>
#include <vector>

namespace flexq_ft {

struct NvidiaLibrary {
  std::string name;                  // "cuBLASLt", for errors
  std::vector<std::string> files;    // "libcublasLt.so.13", the preferred first
  std::vector<std::string> folders;  // of the wheels, below site-packages: "nvidia/cu13/lib"
  std::string wheel;                 // "nvidia-cublas"
};

struct OpenedLibrary {
  void* handle = nullptr;  // of dlopen; never closed
  std::string path;
};

// Throws Error{kDevice} with all the places and the wheel to install.
OpenedLibrary open_nvidia_library(const NvidiaLibrary& library);

// The function of that name; throws Error{kDevice} if the library has none.
void* library_function(const OpenedLibrary& library, const char* name);

// Folders that may hold nvidia/…, beside those found from where this library lies: Python's
// sys.path. Replaces those given before.
void set_library_roots(std::vector<std::string> folders);

}  // namespace flexq_ft
