// DeviceComm on the CPU: one rank, and MPI.
#include "ft/comm/device_comm.h"

#include <cstring>

#include "ft/comm/mpi_session.h"

namespace flexq_ft {

namespace {

void check_reduce(ConstTensor x) {
  FLEXQ_FT_CHECK_EQ(x.dtype(), DataType::kFp32, "all_reduce of ", x.shape());
  FLEXQ_FT_CHECK_EQ(x.device(), Device::kCpu, "all_reduce of ", x.shape());
}

void check_gather(ConstTensor out, ConstTensor x, int size) {
  FLEXQ_FT_CHECK_EQ(out.dtype(), x.dtype(), "all_gather of ", x.shape());
  FLEXQ_FT_CHECK_EQ(out.count(), size * x.count(), "all_gather of ", x.shape(), " into ",
                    out.shape());
  FLEXQ_FT_CHECK_EQ(x.device(), Device::kCpu, "all_gather of ", x.shape());
}

class SingleComm final : public DeviceComm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(Tensor x, Stream) override { check_reduce(x); }
  void all_gather(Tensor out, ConstTensor x, Stream) override {
    check_gather(out, x, 1);
    if (!x.empty() && out.raw() != x.raw()) std::memcpy(out.raw(), x.raw(), x.bytes());
  }
  void barrier() override {}
  void broadcast(void*, size_t, int root) override { FLEXQ_FT_CHECK_EQ(root, 0, "broadcast"); }
};

class MpiComm final : public DeviceComm {
 public:
  int rank() const override { return session_.rank(); }
  int size() const override { return session_.size(); }
  void all_reduce(Tensor x, Stream) override {
    check_reduce(x);
    if (!x.empty()) session_.all_reduce(x.data<float>(), static_cast<size_t>(x.count()));
  }
  void all_gather(Tensor out, ConstTensor x, Stream) override {
    check_gather(out, x, size());
    if (!x.empty()) session_.all_gather(out.raw(), x.raw(), x.bytes());
  }
  void barrier() override { session_.barrier(); }
  void broadcast(void* data, size_t bytes, int root) override {
    FLEXQ_FT_CHECK(root >= 0 && root < size(), "broadcast from rank ", root, " of ", size());
    session_.broadcast(data, bytes, root);
  }

 private:
  const MpiSession& session_ = MpiSession::get();
};

}  // namespace

std::shared_ptr<DeviceComm> make_single_comm() { return std::make_shared<SingleComm>(); }

std::shared_ptr<DeviceComm> make_mpi_comm() { return std::make_shared<MpiComm>(); }

}  // namespace flexq_ft
