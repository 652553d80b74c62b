#include "ft/kernels/cublaslt.h"

#include "ft/core/check.h"
#include "ft/core/nvidia_library.h"

namespace flexq_ft::cublaslt {

namespace {

constexpr int kAllocFailed = 3;  // of cublasStatus_t

template <typename Function>
void bind(const OpenedLibrary& library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(library_function(library, name));
}

Library open() {
  const OpenedLibrary opened = open_nvidia_library({
      "cuBLASLt",
      {"libcublasLt.so.13", "libcublasLt.so.12"},
      {"nvidia/cu13/lib", "nvidia/cublas/lib"},
      "nvidia-cublas",
  });
  Library out;
  out.path = opened.path;
  Api& api = out.api;
  bind(opened, "cublasLtGetVersion", &api.get_version);
  bind(opened, "cublasLtGetStatusName", &api.get_status_name);
  bind(opened, "cublasLtCreate", &api.create);
  bind(opened, "cublasLtDestroy", &api.destroy);
  bind(opened, "cublasLtMatmulDescCreate", &api.desc_create);
  bind(opened, "cublasLtMatmulDescDestroy", &api.desc_destroy);
  bind(opened, "cublasLtMatmulDescSetAttribute", &api.desc_set);
  bind(opened, "cublasLtMatrixLayoutCreate", &api.layout_create);
  bind(opened, "cublasLtMatrixLayoutDestroy", &api.layout_destroy);
  bind(opened, "cublasLtMatmulPreferenceCreate", &api.preference_create);
  bind(opened, "cublasLtMatmulPreferenceDestroy", &api.preference_destroy);
  bind(opened, "cublasLtMatmulPreferenceSetAttribute", &api.preference_set);
  bind(opened, "cublasLtMatmulAlgoGetHeuristic", &api.heuristic);
  bind(opened, "cublasLtMatmulAlgoCheck", &api.algo_check);
  bind(opened, "cublasLtMatmulAlgoConfigGetAttribute", &api.algo_config_get);
  bind(opened, "cublasLtMatmul", &api.matmul);
  out.version = api.get_version();
  return out;
}

}  // namespace

const Library& library() {
  static const Library opened = open();
  return opened;
}

std::string version_text(size_t version) {
  return detail::join(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

void check(int status, const char* call, const char* file, int line) {
  if (status == kSuccess) return;
  throw Error(status == kAllocFailed ? ErrorKind::kOutOfMemory : ErrorKind::kDevice,
              detail::join("cuBLASLt: ", library().api.get_status_name(status), " (", status, ")"),
              detail::join(call, " at ", file, ":", line, ", ", library().path));
}

}  // namespace flexq_ft::cublaslt
