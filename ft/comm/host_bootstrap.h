// HostBootstrap: which process of the run this is, and how all of them end. For the programs;
// Python has mpi4py for it. Data of tensors goes through DeviceComm.
#pragma once

#include <cstddef>
#include <memory>

namespace flexq_ft {

class HostBootstrap {
 public:
  virtual ~HostBootstrap() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;  // among the ranks of this host

  virtual void barrier() = 0;
  // bytes of rank root to all, in place.
  virtual void broadcast(void* data, size_t bytes, int root) = 0;

  // Ends every rank at once, wherever it is; the launcher returns this code.
  [[noreturn]] virtual void abort(int code) = 0;
};

// MPI's, if a launcher started more than one process; else that of a single process, which touches
// no MPI. Throws as MpiSession::get (mpi_session.h).
std::unique_ptr<HostBootstrap> make_host_bootstrap();

}  // namespace flexq_ft
