#include "ft/comm/host_bootstrap.h"

#include <cstdlib>

#include "ft/comm/mpi_session.h"

namespace flexq_ft {

namespace {

class SingleBootstrap final : public HostBootstrap {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  void barrier() override {}
  void broadcast(void*, size_t, int) override {}
  void abort(int code) override { std::exit(code); }
};

class MpiBootstrap final : public HostBootstrap {
 public:
  int rank() const override { return session_.rank(); }
  int size() const override { return session_.size(); }
  int local_rank() const override { return session_.local_rank(); }
  void barrier() override { session_.barrier(); }
  void broadcast(void* data, size_t bytes, int root) override {
    session_.broadcast(data, bytes, root);
  }
  void abort(int code) override { session_.abort(code); }

 private:
  const MpiSession& session_ = MpiSession::get();
};

}  // namespace

std::unique_ptr<HostBootstrap> make_host_bootstrap() {
  if (launched_processes() > 1) return std::make_unique<MpiBootstrap>();
  return std::make_unique<SingleBootstrap>();
}

}  // namespace flexq_ft
