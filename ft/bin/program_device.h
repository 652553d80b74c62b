// Where the FT programs run: each rank on a GPU of its own, or all on the CPU.
#pragma once

#include <memory>

#include "ft/bin/program_config.h"
#include "ft/comm/device_comm.h"
#include "ft/comm/host_bootstrap.h"

namespace flexq_ft {

// Sets options->device and options->gpu: GPU local_rank where `device` in the INI says cuda; where
// it says auto, the same if every rank has one and the model runs on it (fp16 or bf16), else the
// CPU. Collective. Throws Error{kDevice} if cuda was asked for and this rank
// has no GPU.
void place(const ProgramConfig& config, const ModelFolder& folder, HostBootstrap& host,
           EngineOptions* options);

// Of all ranks of the host's world: NCCL's for GPUs, else MPI's; of one rank neither. Collective.
std::shared_ptr<DeviceComm> make_comm(const EngineOptions& options, HostBootstrap& host);

}  // namespace flexq_ft
