#include "ft/comm/nccl.h"

#include <cstdlib>

#include "ft/core/check.h"
#include "ft/core/nvidia_library.h"

namespace flexq_ft::nccl {

namespace {

template <typename F>
void set(F** function, const OpenedLibrary& library, const char* name) {
  *function = reinterpret_cast<F*>(library_function(library, name));
}

// NVLink multicast (NVLS) off, unless the user has asked for it: where GPUs are shared between
// virtual machines, a program that uses it can put the GPUs of the host out of service; and its
// sums need not be those of the other algorithms. NCCL reads this when it is first called.
void without_multicast() { setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0); }

Api load() {
  without_multicast();
  const OpenedLibrary library = open_nvidia_library(
      {"NCCL", {"libnccl.so.2"}, {"nvidia/nccl/lib", "nvidia/cu13/lib"}, "nvidia-nccl-cu13"});
  Api api;
  set(&api.get_version, library, "ncclGetVersion");
  api.path = library.path;
  if (api.get_version(&api.version) != kSuccess || api.version < kLeastVersion) {
    throw Error(ErrorKind::kDevice,
                detail::join("NCCL ", version_text(api.version), " is too old: ", api.path),
                detail::join("NCCL ", version_text(kLeastVersion), " or later is needed"),
                "pip install nvidia-nccl-cu13, or take the old one off LD_LIBRARY_PATH");
  }
  set(&api.get_unique_id, library, "ncclGetUniqueId");
  set(&api.comm_init_rank, library, "ncclCommInitRank");
  set(&api.comm_destroy, library, "ncclCommDestroy");
  set(&api.comm_abort, library, "ncclCommAbort");
  set(&api.comm_get_async_error, library, "ncclCommGetAsyncError");
  set(&api.all_reduce, library, "ncclAllReduce");
  set(&api.all_gather, library, "ncclAllGather");
  set(&api.get_error_string, library, "ncclGetErrorString");
  set(&api.get_last_error, library, "ncclGetLastError");
  return api;
}

}  // namespace

const Api& open() {
  static const Api api = load();
  return api;
}

UniqueId unique_id() {
  UniqueId id;
  check(open().get_unique_id(&id), "ncclGetUniqueId", 0, 1);
  return id;
}

std::string version_text(int version) {
  return detail::join(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

void check(int status, const char* call, int rank, int size) {
  if (status == kSuccess) return;
  const Api& api = open();
  const char* last = api.get_last_error(nullptr);
  throw Error(ErrorKind::kLaunch,
              detail::join(call, " failed on rank ", rank, " of ", size, ": ",
                           api.get_error_string(status)),
              last != nullptr ? last : "",
              "NCCL_DEBUG=INFO in the environment shows what NCCL does");
}

}  // namespace flexq_ft::nccl
