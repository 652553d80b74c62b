#include "ft/comm/mpi_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>
#include <vector>

#include "ft/core/error.h"
#include "ft/core/own_folder.h"

namespace flexq_ft {

namespace {

namespace fs = std::filesystem;

constexpr const char* kFileName = "libflexq_ft_mpi.so";
constexpr const char* kInstall = "pip install 'flexq-ft[mpi]'";

std::vector<fs::path> candidates() {
  const fs::path own = own_folder();
  const fs::path lib = own.parent_path() / "lib" / FLEXQ_FT_PYTHON_FOLDER;
  return {
      own / kFileName,                                 // the module's package
      lib / "site-packages" / "flexq_ft" / kFileName,  // from bin/ of an environment
      lib / "dist-packages" / "flexq_ft" / kFileName,  // Debian's name for it
      own.parent_path() / "ft" / "comm" / kFileName,   // from bin/ of a build tree
  };
}

std::string searched() {
  std::string text;
  for (const fs::path& path : candidates()) {
    text += (text.empty() ? "" : ", ") + path.parent_path().string();
  }
  return text;
}

const FlexqFtMpiApi* open_table() {
  const std::string path = find_mpi_library();
  if (path.empty()) {
    throw Error(ErrorKind::kDevice, "MPI is not available: there is no libflexq_ft_mpi",
                std::string(kFileName) + " is in none of " + searched(), kInstall);
  }
  // Global, because Open MPI opens plugins that look for its symbols.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    throw Error(ErrorKind::kDevice, "MPI is not available: " + path + " cannot be opened",
                dlerror(), kInstall);
  }
  const auto function = reinterpret_cast<FlexqFtMpiApiFunction>(dlsym(library, "flexq_ft_mpi_api"));
  const FlexqFtMpiApi* api = function != nullptr ? function(kFlexqFtMpiVersion) : nullptr;
  if (api == nullptr) {
    throw Error(ErrorKind::kDevice, path + " belongs to another version of flexq-ft",
                "version " + std::to_string(kFlexqFtMpiVersion) + " of its table was asked for",
                std::string(kInstall) + " --force-reinstall");
  }
  return api;
}

}  // namespace

std::string find_mpi_library() {
  std::error_code ignored;
  for (const fs::path& path : candidates()) {
    if (fs::exists(path, ignored)) return path.string();
  }
  return {};
}

const FlexqFtMpiApi& open_mpi_library() {
  static const FlexqFtMpiApi* api = open_table();
  return *api;
}

}  // namespace flexq_ft
