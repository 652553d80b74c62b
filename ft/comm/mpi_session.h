// MpiSession: this process's place in the MPI world. One per process, started on first use and
// ended when the process exits.
#pragma once

#include <cstddef>

#include "ft/comm/mpi_api.h"

namespace flexq_ft {

class MpiSession {
 public:
  // Throws Error{kDevice} if MPI cannot be opened or started, or if the launcher's number of
  // processes is not MPI's (an mpirun of another MPI). Collective at the first call.
  static const MpiSession& get();

  int rank() const { return world_.rank; }
  int size() const { return world_.size; }
  int local_rank() const { return world_.local_rank; }

  // As in mpi_api.h; a status other than 0 is thrown as Error{kLaunch} with MPI's text.
  void barrier() const;
  void broadcast(void* data, size_t bytes, int root) const;
  void all_reduce(float* data, size_t count) const;
  void all_gather(void* out, const void* in, size_t bytes) const;
  [[noreturn]] void abort(int code) const;

 private:
  MpiSession();
  void check(int status, const char* call) const;

  const FlexqFtMpiApi& api_;
  FlexqFtMpiWorld world_{0, 1, 0};
};

// How many processes mpirun or srun says it started; 1 outside of them. Touches no MPI.
int launched_processes();

}  // namespace flexq_ft
