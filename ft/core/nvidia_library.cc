#include "ft/core/nvidia_library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <system_error>

#include "ft/core/error.h"
#include "ft/core/own_folder.h"

namespace flexq_ft {

namespace {

namespace fs = std::filesystem;

constexpr const char* kToolkit = "/usr/local/cuda/lib64";

std::mutex g_mutex;
std::vector<std::string> g_roots;

// Folders that may hold nvidia/….
std::vector<fs::path> wheel_roots() {
  const fs::path above = own_folder().parent_path();
  std::vector<fs::path> roots{above};  // the module's package is beside nvidia/
  std::error_code ignored;
  std::vector<fs::path> pythons;  // from bin/ of an environment: lib/python3.12
  for (const auto& entry : fs::directory_iterator(above / "lib", ignored)) {
    if (entry.path().filename().string().rfind("python3", 0) == 0) pythons.push_back(entry.path());
  }
  std::sort(pythons.rbegin(), pythons.rend());
  for (const fs::path& python : pythons) {
    for (const char* packages : {"site-packages", "dist-packages"}) {
      roots.push_back(python / packages);
    }
  }
  const std::lock_guard<std::mutex> lock(g_mutex);
  roots.insert(roots.end(), g_roots.begin(), g_roots.end());
  std::vector<fs::path> there;
  for (const fs::path& root : roots) {
    const bool known = std::find(there.begin(), there.end(), root) != there.end();
    if (!known && fs::is_directory(root, ignored)) there.push_back(root);
  }
  return there;
}

std::string path_of(void* handle, const std::string& asked) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map->l_name[0] == '\0') return asked;
  return map->l_name;
}

}  // namespace

void set_library_roots(std::vector<std::string> folders) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_roots = std::move(folders);
}

OpenedLibrary open_nvidia_library(const NvidiaLibrary& library) {
  std::string fault;
  const auto open = [&fault](const std::string& file) -> OpenedLibrary {
    void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return {handle, path_of(handle, file)};
    const char* text = dlerror();
    // A file that is there and cannot be opened says more than one that is not.
    if (text != nullptr && file.find('/') != std::string::npos) fault = text;
    return {};
  };
  std::string places;
  std::vector<fs::path> folders;
  for (const fs::path& root : wheel_roots()) {
    places += root.string() + ", ";
    for (const std::string& folder : library.folders) folders.push_back(root / folder);
  }
  folders.emplace_back(kToolkit);
  for (const std::string& file : library.files) {
    if (OpenedLibrary opened = open(file); opened.handle != nullptr) return opened;
    for (const fs::path& folder : folders) {
      std::error_code ignored;
      if (!fs::exists(folder / file, ignored)) continue;
      if (OpenedLibrary opened = open((folder / file).string()); opened.handle != nullptr) {
        return opened;
      }
    }
  }
  std::string names;
  for (const std::string& file : library.files) names += (names.empty() ? "" : " or ") + file;
  std::string wheels;
  for (const std::string& folder : library.folders) {
    wheels += (wheels.empty() ? "" : " or ") + folder;
  }
  throw Error(ErrorKind::kDevice, library.name + " is not available",
              fault.empty() ? names + " is neither on the loader's search path, nor in " + wheels +
                                  " of " + places + "nor in " + kToolkit
                            : fault,
              "pip install " + library.wheel);
}

void* library_function(const OpenedLibrary& library, const char* name) {
  void* function = dlsym(library.handle, name);
  if (function == nullptr) {
    throw Error(ErrorKind::kDevice, library.path + " has no function " + name,
                "it is too old, or another library of that name");
  }
  return function;
}

}  // namespace flexq_ft
