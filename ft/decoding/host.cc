#include "ft/decoding/host.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "ft/decoding/cgroup.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace flexq_ft {

int ranks_on_this_host(DeviceComm& comm) {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  uint32_t hash = 2166136261u;  // FNV-1a
  for (const char* c = name; *c != '\0'; ++c) {
    hash = (hash ^ static_cast<uint8_t>(*c)) * 16777619u;
  }
  const int64_t size = comm.size();
  std::vector<uint32_t> all(static_cast<size_t>(size));
  comm.all_gather(Tensor(all.data(), DataType::kInt32, {size, 1}),
                  ConstTensor(&hash, DataType::kInt32, {1}), Stream{});
  return static_cast<int>(std::count(all.begin(), all.end(), hash));
}

int usable_cores() {
#ifdef _OPENMP
  const int cores = omp_get_num_procs();
  return static_cast<int>(std::min<double>(cores, std::max(1.0, std::ceil(cgroup_limits().cores))));
#else
  return 1;
#endif
}

size_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  size_t kib = 0;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key != "MemAvailable:") continue;
    return std::max<size_t>(1, std::min(kib * 1024, cgroup_limits().memory_left));
  }
  return 0;
}

ThreadCount::ThreadCount(int threads) : before_(0) {
#ifdef _OPENMP
  before_ = omp_get_max_threads();
  omp_set_num_threads(threads);
#else
  (void)threads;
#endif
}

ThreadCount::~ThreadCount() {
#ifdef _OPENMP
  omp_set_num_threads(before_);
#endif
}

}  // namespace flexq_ft
