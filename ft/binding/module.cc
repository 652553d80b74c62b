// flexq_ft._native: the only place that knows both C++ and Python. One file per bound class.
#include "ft/binding/module.h"

#include <pthread.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// OpenMP keeps the threads of a parallel region for the next one. A fork would have the record of
// them and not the threads, and its first region would wait for ever: none are kept over a fork.
void release_threads() {
#ifdef _OPENMP
  omp_pause_resource_all(omp_pause_soft);
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The C++ side of flexq-ft: kernels, readers and the engine. Importable alone.";
  module.attr("__version__") = FLEXQ_FT_VERSION;
  flexq_ft::bind_errors(module);
  flexq_ft::bind_bench(module);
  flexq_ft::bind_w6ax_bench(module);
  flexq_ft::bind_build_info(module);
  flexq_ft::bind_comm(module);
  flexq_ft::bind_engine(module);
  flexq_ft::bind_kernels(module);
  flexq_ft::bind_readers(module);
  flexq_ft::bind_model_folder(module);
  flexq_ft::bind_ops(module);
  flexq_ft::bind_gpu_gemm(module);
  pthread_atfork(&release_threads, nullptr, nullptr);
}
