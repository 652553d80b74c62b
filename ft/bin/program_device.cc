#include "ft/bin/program_device.h"

#include "ft/comm/nccl_comm.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

namespace {

bool has_own_gpu(const HostBootstrap& host) { return host.local_rank() < cuda::device_count(); }

bool all_ranks(bool mine, HostBootstrap& host) {
  bool all = true;
  for (int rank = 0; rank < host.size(); ++rank) {
    bool theirs = mine;
    host.broadcast(&theirs, sizeof(theirs), rank);
    all = all && theirs;
  }
  return all;
}

bool runs_on_gpus(const ProgramConfig& config, const ModelFolder& folder) {
  return config.dtype.value_or(folder.dtype) != DataType::kFp32;
}

}  // namespace

void place(const ProgramConfig& config, const ModelFolder& folder, HostBootstrap& host,
           EngineOptions* options) {
  const bool everywhere = all_ranks(has_own_gpu(host), host);
  const Device automatic =
      everywhere && runs_on_gpus(config, folder) ? Device::kCuda : Device::kCpu;
  options->device = config.device.value_or(automatic);
  if (options->device == Device::kCpu) return;
  options->gpu = host.local_rank();
  if (!has_own_gpu(host)) {
    const int gpus = cuda::device_count();
    throw Error(ErrorKind::kDevice,
                detail::join("device is cuda, but rank ", host.rank(), " has no GPU: it is number ",
                             host.local_rank(), " of its host, which has ", gpus),
                gpus == 0 ? cuda::no_device_cause() : "every rank needs a GPU of its own",
                "fewer ranks on a host, or device = cpu");
  }
  cuda::use_device(options->gpu);
}

std::shared_ptr<DeviceComm> make_comm(const EngineOptions& options, HostBootstrap& host) {
  if (host.size() == 1) return make_single_comm();
  if (options.device == Device::kCpu) return make_mpi_comm();
  nccl::UniqueId id{};
  if (host.rank() == 0) id = nccl::unique_id();
  host.broadcast(&id, sizeof(id), 0);
  return make_nccl_comm(host.rank(), host.size(), id, make_mpi_comm());
}

}  // namespace flexq_ft
