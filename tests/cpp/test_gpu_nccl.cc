// NcclComm on the GPUs that are here: alone on one, two ranks as two threads on two.
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "ft/comm/deadline.h"
#include "ft/comm/nccl_comm.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

namespace {

bool has_gpus(int count) {
  if (cuda::device_count() >= count) return true;
  std::printf("skipped: %d GPU(s) needed, %d here\n", count, cuda::device_count());
  return false;
}

// What threads of one process have instead of MPI: a gather by way of common memory.
class ThreadComm final : public DeviceComm {
 public:
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    int arrived = 0;
    int64_t round = 0;
    std::vector<uint8_t> data;
  };

  ThreadComm(int rank, int size, Shared* shared) : rank_(rank), size_(size), shared_(shared) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce(Tensor, Stream) override { FLEXQ_FT_CHECK(false, "not used"); }
  void all_gather(Tensor out, ConstTensor x, Stream) override {
    {
      const std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->data.resize(out.bytes());
      std::memcpy(shared_->data.data() + rank_ * x.bytes(), x.raw(), x.bytes());
    }
    barrier();
    std::memcpy(out.raw(), shared_->data.data(), out.bytes());
    barrier();
  }
  void barrier() override {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    const int64_t round = shared_->round;
    if (++shared_->arrived == size_) {
      shared_->arrived = 0;
      ++shared_->round;
      shared_->changed.notify_all();
      return;
    }
    shared_->changed.wait(lock, [&] { return shared_->round != round; });
  }
  void broadcast(void*, size_t, int) override { FLEXQ_FT_CHECK(false, "not used"); }

 private:
  const int rank_;
  const int size_;
  Shared* const shared_;
};

// f(comm) on a thread of its own for each rank, on its own GPU; the first error is thrown.
template <typename F>
void on_ranks(int size, F&& f) {
  const nccl::UniqueId id = nccl::unique_id();
  ThreadComm::Shared shared;
  std::vector<std::string> said(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        cuda::use_device(rank);
        f(*make_nccl_comm(rank, size, id, std::make_shared<ThreadComm>(rank, size, &shared)));
      } catch (const Error& error) {
        said[static_cast<size_t>(rank)] = std::string(error.what()) + ": " + error.cause();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : said) {
    if (!text.empty()) throw std::runtime_error(text);
  }
}

float value(int rank, int64_t i) { return static_cast<float>((rank + 1) * (i % 251)) / 64.0f; }

std::vector<float> values(int rank, int64_t count) {
  std::vector<float> x(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) x[static_cast<size_t>(i)] = value(rank, i);
  return x;
}

std::vector<float> to_host(ConstTensor x, Stream stream) {
  std::vector<float> out(static_cast<size_t>(x.count()));
  cuda::copy(out.data(), x.raw(), x.bytes(), stream);
  cuda::synchronize(stream);
  return out;
}

// Every collective of a step in odd and even sizes; no EXPECT but on rank 0: it counts unguarded.
void exchange(DeviceComm& comm) {
  comm.connect();
  cuda::Queue queue;
  for (const int64_t count : {int64_t{1}, int64_t{4099}, int64_t{1} << 20}) {
    const std::vector<float> mine = values(comm.rank(), count);
    const Buffer x(DataType::kFp32, Shape{count}, MemoryKind::kWorkspace, Device::kCuda);
    const Buffer all(DataType::kFp32, Shape{comm.size(), count}, MemoryKind::kWorkspace,
                     Device::kCuda);
    cuda::copy(x.data(), mine.data(), x.bytes(), queue.stream());
    Stream stream = queue.stream();
    stream.tail->our_kernel = true;
    comm.all_gather(all.tensor(), x.tensor(), stream);
    const bool full_edge = !stream.tail->our_kernel;
    comm.all_reduce(x.tensor(), stream);
    cuda::Event end;
    end.record(stream);
    wait_for(end, comm, "the exchange", 30.0);
    const std::vector<float> sums = to_host(x.tensor(), stream);
    const std::vector<float> parts = to_host(all.tensor(), stream);
    if (comm.rank() != 0) continue;
    EXPECT(full_edge);
    EXPECT(comm.fault().empty());
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      float sum = 0.0f;  // exact in any order: few bits
      for (int rank = 0; rank < comm.size(); ++rank) {
        sum += value(rank, i);
        wrong += parts[static_cast<size_t>(rank * count + i)] != value(rank, i);
      }
      wrong += sums[static_cast<size_t>(i)] != sum;
    }
    EXPECT_EQ(wrong, 0);
  }
}

}  // namespace

TEST(one_rank_is_the_sum) {
  if (!has_gpus(1)) return;
  on_ranks(1, exchange);
}

TEST(two_ranks_have_the_sum_and_each_others_parts) {
  if (!has_gpus(2)) return;
  on_ranks(2, exchange);
}

TEST(host_memory_goes_by_the_hosts_comm) {
  if (!has_gpus(2)) return;
  on_ranks(2, [](DeviceComm& comm) {
    const int32_t mine = 10 + comm.rank();
    std::vector<int32_t> all(2);
    comm.all_gather(Tensor(all.data(), DataType::kInt32, {2, 1}),
                    ConstTensor(&mine, DataType::kInt32, {1}), Stream{});
    if (comm.rank() == 0) EXPECT(all == (std::vector<int32_t>{10, 11}));
  });
}

TEST(a_rank_that_does_not_come_is_given_up) {
  if (!has_gpus(2)) return;
  on_ranks(2, [](DeviceComm& comm) {
    comm.connect();
    if (comm.rank() == 1) {
      comm.barrier();
      comm.abort();
      return;
    }
    const Buffer x(DataType::kFp32, Shape{1024}, MemoryKind::kWorkspace, Device::kCuda);
    cuda::Queue queue;
    cuda::Event end;
    comm.all_reduce(x.tensor(), queue.stream());
    end.record(queue.stream());
    EXPECT_THROW(wait_for(end, comm, "step 7", 2.0), Error,
                 "step 7 did not end within 2 s on rank 0 of 2");
    EXPECT_THROW(comm.connect(), Error, "has left the others");
    comm.barrier();
  });
}
