// What this host offers, and how many ranks share it.
#pragma once

#include <cstddef>

#include "ft/comm/device_comm.h"

namespace flexq_ft {

// Ranks of the run whose host has this host's name. A collective call.
int ranks_on_this_host(DeviceComm& comm);

// Cores that this process may run on, no more than its control group gives it time for.
int usable_cores();

// Memory that can be allocated without swapping (MemAvailable), or that the control group has left
// where that is less; 0 where the system does not say.
size_t available_memory();

// While it lives, parallel regions of the calling thread have so many threads.
class ThreadCount {
 public:
  explicit ThreadCount(int threads);
  ~ThreadCount();
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

}  // namespace flexq_ft
