// How the CPU twins share work among OpenMP threads.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace flexq_ft {

// Calls body(begin, end) on disjoint ranges that cover [0, count), one per thread, in parallel when
// count * cost (in operations, roughly) is worth waking threads. body must not throw.
template <typename Body>
void parallel_ranges(int64_t count, int64_t cost, Body&& body) {
  constexpr int64_t kWorthAThread = 16384;
#ifdef _OPENMP
  const int64_t useful = std::min(count, count * cost / kWorthAThread + 1);
  const int threads = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), useful));
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t team = omp_get_num_threads();
      const int64_t me = omp_get_thread_num();
      const int64_t begin = count * me / team;
      const int64_t end = count * (me + 1) / team;
      if (begin < end) body(begin, end);
    }
    return;
  }
#endif
  (void)cost;
  if (count > 0) body(int64_t{0}, count);
}

}  // namespace flexq_ft
