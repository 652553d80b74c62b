// DeviceComm over NCCL: tensors of GPUs, one GPU a rank.
#pragma once

#include <memory>

#include "ft/comm/device_comm.h"
#include "ft/comm/nccl.h"

namespace flexq_ft {

// One rank's end. id: one nccl::unique_id(), the same on all ranks. host carries what is in host
// memory: tensors of the CPU, barriers, broadcasts; its rank and size are this one's.
// Opens NCCL and touches no GPU; connect() meets the others. Throws as nccl::open().
//
// Sums: all ranks get the same bits, and the same at every run of the same sizes. Of more than two
// ranks NCCL may add in another order where a tensor has another size.
// Graphs: a collective may be captured once it has run eagerly in that size (NCCL allocates on
// first use), with a capture mode that lets other threads call CUDA (thread-local: NCCL has threads
// of its own); all ranks capture and launch in the same order. Graphs must be destroyed before this
// is.
std::shared_ptr<DeviceComm> make_nccl_comm(int rank, int size, const nccl::UniqueId& id,
                                           std::shared_ptr<DeviceComm> host);

}  // namespace flexq_ft
