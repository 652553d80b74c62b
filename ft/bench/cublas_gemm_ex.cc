#include "ft/bench/cublas_gemm_ex.h"

#include "ft/core/check.h"
#include "ft/core/nvidia_library.h"

namespace flexq_ft {

namespace {

// Values of cudaDataType_t, cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t.
constexpr int kR8I = 3, kR32I = 10, kCompute32I = 72, kDefault = -1, kNotTransposed = 0;

struct Api {
  int (*create)(void**);
  int (*destroy)(void*);
  int (*set_stream)(void*, void*);
  int (*gemm)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int,
              int, const void*, void*, int, int, int, int);
};

Api open() {
  const OpenedLibrary library = open_nvidia_library({
      "cuBLAS",
      {"libcublas.so.13", "libcublas.so.12"},
      {"nvidia/cu13/lib", "nvidia/cublas/lib"},
      "nvidia-cublas",
  });
  const auto bind = [&](const char* name, auto* function) {
    *function =
        reinterpret_cast<std::decay_t<decltype(*function)>>(library_function(library, name));
  };
  Api api{};
  bind("cublasCreate_v2", &api.create);
  bind("cublasDestroy_v2", &api.destroy);
  bind("cublasSetStream_v2", &api.set_stream);
  bind("cublasGemmEx", &api.gemm);
  return api;
}

const Api& api() {
  static const Api opened = open();
  return opened;
}

void check(int status, const char* call) {
  if (status == 0) return;
  throw Error(ErrorKind::kDevice, detail::join("cuBLAS: status ", status), call);
}

}  // namespace

CublasGemmEx::CublasGemmEx() { check(api().create(&handle_), "cublasCreate"); }

CublasGemmEx::~CublasGemmEx() { api().destroy(handle_); }

void CublasGemmEx::run(int32_t* y, const int8_t* x, const int8_t* w, int64_t m, int64_t n,
                       int64_t k, Stream stream) const {
  const int32_t one = 1, zero = 0;
  const auto rows = static_cast<int>(n), columns = static_cast<int>(m), depth = static_cast<int>(k);
  check(api().set_stream(handle_, stream.handle), "cublasSetStream");
  check(api().gemm(handle_, kNotTransposed, kNotTransposed, rows, columns, depth, &one, w, kR8I,
                   rows, x, kR8I, depth, &zero, y, kR32I, rows, kCompute32I, kDefault),
        "cublasGemmEx");
}

}  // namespace flexq_ft
