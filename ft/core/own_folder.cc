#include "ft/core/own_folder.h"

#include <dlfcn.h>
#include <link.h>

#include <system_error>

namespace flexq_ft {

namespace fs = std::filesystem;

namespace {

constexpr char kAnchor = 0;  // local to this module or program, as a function need not be

}  // namespace

fs::path own_folder() {
  Dl_info info;
  link_map* map = nullptr;
  const bool found = dladdr1(&kAnchor, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) != 0;
  // The program itself has no name in the link map, and its dli_fname may be a bare argv[0].
  std::error_code ignored;
  if (!found || map->l_name[0] == '\0') {
    return fs::read_symlink("/proc/self/exe", ignored).parent_path();
  }
  return fs::absolute(map->l_name, ignored).parent_path();
}

}  // namespace flexq_ft
