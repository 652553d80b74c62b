// Collectives among the tensor-parallel ranks. Every rank calls the same ones in the same order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

class DeviceComm {
 public:
  virtual ~DeviceComm() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // x = sum over ranks, in place; fp32. All ranks get the same bits, and the same at every run.
  virtual void all_reduce(Tensor x, Stream stream) = 0;

  // out [size, …shape of x] <- x of every rank, in rank order.
  virtual void all_gather(Tensor out, ConstTensor x, Stream stream) = 0;

  virtual void barrier() = 0;

  // bytes of rank root to all, in place. Host memory.
  virtual void broadcast(void* data, size_t bytes, int root) = 0;

  // What only a comm of GPUs has something to do for (nccl_comm.h); elsewhere they do nothing.

  // Meets the other ranks from the calling thread's GPU, once; takes the memory that collectives
  // need there, so it belongs before memory is planned. Collective. The first collective on a GPU's
  // tensor does it where nobody has.
  virtual void connect() {}

  // What has gone wrong among the GPUs since, in words; empty: nothing. Not collective.
  virtual std::string fault() { return {}; }

  // Ends the collectives that this rank's GPU is in, and this rank's part in all later ones.
  virtual void abort() {}
};

// One rank: every call is a no-op or a copy.
std::shared_ptr<DeviceComm> make_single_comm();

// All ranks of the MPI world; data in host memory (nccl_comm.h has the one for GPUs). Throws as
// MpiSession::get (mpi_session.h).
std::shared_ptr<DeviceComm> make_mpi_comm();

}  // namespace flexq_ft
