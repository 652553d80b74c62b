#include "ft/core/library.h"

#include <dlfcn.h>
#include <link.h>

#include <mutex>
#include <system_error>

#include "ft/core/check.h"

namespace flexq_ft {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSystemFolder = "/usr/lib/x86_64-linux-gnu";

std::mutex g_mutex;
std::vector<fs::path> g_added;

std::string loaded_path(void* handle, const std::string& fallback) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map->l_name[0] == '\0') return fallback;
  return map->l_name;
}

}  // namespace

fs::path own_folder() {
  Dl_info info;
  link_map* map = nullptr;
  const bool found = dladdr1(reinterpret_cast<const void*>(&own_folder), &info,
                             reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) != 0;
  // The program itself has no name in the link map, and its dli_fname may be a bare argv[0].
  std::error_code ignored;
  if (!found || map->l_name[0] == '\0')
    return fs::read_symlink("/proc/self/exe", ignored).parent_path();
  return fs::absolute(map->l_name, ignored).parent_path();
}

std::vector<fs::path> package_folders() {
  const fs::path own = own_folder();
  const fs::path lib = own.parent_path() / "lib" / FLEXQ_FT_PYTHON_FOLDER;
  std::vector<fs::path> folders = {
      own.parent_path(),      // of the module's package
      lib / "site-packages",  // from bin/ of an environment
      lib / "dist-packages",  // Debian's name for it
  };
  const std::lock_guard<std::mutex> lock(g_mutex);
  folders.insert(folders.end(), g_added.begin(), g_added.end());
  return folders;
}

void add_package_folders(const std::vector<std::string>& folders) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_added.assign(folders.begin(), folders.end());
}

OpenedLibrary open_library(const WheelLibrary& library) {
  std::vector<std::string> places = {library.file};  // without a folder: the loader's own search
  std::error_code ignored;
  std::string searched = "the loader's path";
  const auto look_in = [&](const fs::path& folder) {
    searched += ", " + folder.string();
    if (fs::exists(folder / library.file, ignored))
      places.push_back((folder / library.file).string());
  };
  for (const fs::path& packages : package_folders()) {
    if (!fs::is_directory(packages / "nvidia", ignored)) continue;
    for (const char* path : library.wheel_paths) look_in(packages / path);
  }
  look_in(kSystemFolder);
  std::string why;
  for (const std::string& place : places) {
    if (void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      return {handle, loaded_path(handle, place)};
    }
    const char* said = dlerror();
    why = said != nullptr ? said : "";
  }
  throw Error(ErrorKind::kDevice,
              detail::join(library.what, " is not available: ", library.file, " was not opened"),
              detail::join("looked in ", searched, " (", why, ")"), library.hint);
}

void* find_symbol(const OpenedLibrary& library, const char* name) {
  void* address = dlsym(library.handle, name);
  if (address == nullptr) {
    throw Error(ErrorKind::kDevice, detail::join(library.path, " has no ", name),
                "it is older than this program needs", "install a newer version");
  }
  return address;
}

}  // namespace flexq_ft
