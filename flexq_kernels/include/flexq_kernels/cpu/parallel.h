// One contiguous range of work items per OpenMP thread. Every item is computed alone, so results
// do not depend on the number of threads; without OpenMP one range holds everything.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace flexq_kernels {

// The most threads that a parallel region of this thread has, and a thread's place among them.
#if defined(_OPENMP)
inline int max_threads() { return omp_get_max_threads(); }
inline int thread_index() { return omp_get_thread_num(); }
#else
inline int max_threads() { return 1; }
inline int thread_index() { return 0; }
#endif

// Calls run(begin, end) on each thread. `work` is the number of elementary steps in all; below
// kParallelWork, starting threads costs more than they save. run must not throw.
constexpr int64_t kParallelWork = 1 << 17;

template <typename Run>
void parallel_ranges(int64_t count, int64_t work, const Run& run) {
#if defined(_OPENMP)
  if (count > 1 && work >= kParallelWork && max_threads() > 1) {
#pragma omp parallel
    {
      const int64_t threads = omp_get_num_threads();
      const int64_t thread = thread_index();
      const int64_t begin = count * thread / threads;
      const int64_t end = count * (thread + 1) / threads;
      if (begin < end) run(begin, end);
    }
    return;
  }
#endif
  (void)work;
  if (count > 0) run(0, count);
}

}  // namespace flexq_kernels
