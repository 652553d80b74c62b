#include "ft/comm/nccl_comm.h"

#include <chrono>
#include <exception>
#include <future>
#include <iterator>
#include <thread>
#include <utility>

#include "ft/comm/deadline.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

namespace {

// NCCL picks an algorithm by size and takes its memory when it first runs.
constexpr int64_t kFirstCounts[] = {256, 16 * 1024, 256 * 1024, 2 * 1024 * 1024};

// For an abort to end before the process may; a peer that is lost can hold it up.
constexpr std::chrono::seconds kAbortTime{2};

class NcclComm final : public DeviceComm {
 public:
  NcclComm(int rank, int size, const nccl::UniqueId& id, std::shared_ptr<DeviceComm> host)
      : api_(nccl::open()), rank_(rank), size_(size), id_(id), host_(std::move(host)) {
    FLEXQ_FT_CHECK(rank >= 0 && rank < size, "rank ", rank, " of ", size);
    FLEXQ_FT_CHECK_EQ(host_->rank(), rank, "rank of the host's comm");
    FLEXQ_FT_CHECK_EQ(host_->size(), size, "size of the host's comm");
  }

  ~NcclComm() override {
    // Destroying is collective: while an error unwinds the other ranks may never come to it.
    if (std::uncaught_exceptions() > 0) NcclComm::abort();
    if (comm_ != nullptr) api_.comm_destroy(comm_);
    if (aborting_.valid()) aborting_.wait_for(kAbortTime);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(Tensor x, Stream stream) override {
    if (x.device() == Device::kCpu) return host_->all_reduce(x, stream);
    FLEXQ_FT_CHECK_EQ(x.dtype(), DataType::kFp32, "all_reduce of ", x.shape());
    if (x.empty()) return;
    connect();
    full_edge(stream);
    check(api_.all_reduce(x.raw(), x.raw(), static_cast<size_t>(x.count()), nccl::kFloat32,
                          nccl::kSum, comm_, stream.handle),
          "ncclAllReduce");
  }

  void all_gather(Tensor out, ConstTensor x, Stream stream) override {
    if (x.device() == Device::kCpu) return host_->all_gather(out, x, stream);
    FLEXQ_FT_CHECK_EQ(out.device(), x.device(), "all_gather of ", x.shape());
    FLEXQ_FT_CHECK_EQ(out.dtype(), x.dtype(), "all_gather of ", x.shape());
    FLEXQ_FT_CHECK_EQ(out.count(), size_ * x.count(), "all_gather of ", x.shape(), " into ",
                      out.shape());
    if (x.empty()) return;
    connect();
    full_edge(stream);
    check(api_.all_gather(x.raw(), out.raw(), x.bytes(), nccl::kInt8, comm_, stream.handle),
          "ncclAllGather");
  }

  void barrier() override { host_->barrier(); }
  void broadcast(void* data, size_t bytes, int root) override {
    host_->broadcast(data, bytes, root);
  }

  void connect() override {
    if (comm_ != nullptr) return;
    if (aborted_) {
      throw Error(ErrorKind::kLaunch,
                  detail::join("rank ", rank_, " of ", size_, " has left the others"),
                  "its communicator was aborted after an earlier error", "start the program again");
    }
    gpu_ = cuda::current_device();
    check(api_.comm_init_rank(&comm_, size_, id_, rank_), "ncclCommInitRank");
    run_first_collectives();
  }

  std::string fault() override {
    int error = nccl::kSuccess;
    if (comm_ == nullptr) return {};
    const int status = api_.comm_get_async_error(comm_, &error);
    if (status != nccl::kSuccess) error = status;
    if (error == nccl::kSuccess || error == nccl::kInProgress) return {};
    const char* last = api_.get_last_error(comm_);
    return detail::join(api_.get_error_string(error), last != nullptr ? ": " : "",
                        last != nullptr ? last : "");
  }

  // NCCL tells the kernels on the GPU to end, at once; then it waits until every graph that holds a
  // collective has been destroyed, which is the caller's to do. Hence the thread.
  void abort() override {
    if (comm_ == nullptr) return;
    aborted_ = true;
    const nccl::Comm comm = std::exchange(comm_, nullptr);
    std::packaged_task<void()> task([api = &api_, comm, gpu = gpu_] {
      try {
        cuda::use_device(gpu);  // else NCCL would open another GPU for this thread
      } catch (const Error&) {  // the GPU is lost: NCCL frees what it can
      }
      api->comm_abort(comm);
    });
    aborting_ = task.get_future();
    std::thread(std::move(task)).detach();
  }

 private:
  void check(int status, const char* call) const { nccl::check(status, call, rank_, size_); }

  // Its memory is then taken, and a peer that cannot be reached is known, before a model is loaded.
  void run_first_collectives() {
    const int64_t largest = std::end(kFirstCounts)[-1] * size_;
    const Buffer data(DataType::kFp32, Shape{largest}, MemoryKind::kWorkspace, Device::kCuda);
    cuda::Queue queue;
    cuda::Event end;
    cuda::fill(data.data(), 0, data.bytes(), queue.stream());
    for (const int64_t count : kFirstCounts) {
      all_reduce(data.tensor(DataType::kFp32, {count}), queue.stream());
      // In place: this rank's part lies where the gather puts it.
      const Tensor all = data.tensor(DataType::kFp32, {size_, count});
      all_gather(all, all.rows(rank_, rank_ + 1), queue.stream());
    }
    end.record(queue.stream());
    wait_for(end, *this, "the first exchange among the GPUs");
  }

  const nccl::Api& api_;
  const int rank_;
  const int size_;
  const nccl::UniqueId id_;
  const std::shared_ptr<DeviceComm> host_;
  nccl::Comm comm_ = nullptr;
  int gpu_ = 0;
  bool aborted_ = false;
  std::future<void> aborting_;
};

}  // namespace

std::shared_ptr<DeviceComm> make_nccl_comm(int rank, int size, const nccl::UniqueId& id,
                                           std::shared_ptr<DeviceComm> host) {
  FLEXQ_FT_CHECK(host != nullptr, "make_nccl_comm without a comm of the host");
  return std::make_shared<NcclComm>(rank, size, id, std::move(host));
}

}  // namespace flexq_ft
