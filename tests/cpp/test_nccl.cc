// Our declarations of NCCL against NVIDIA's header, where there is one, and waiting with a
// deadline. CXXFLAGS=-I/path/to/nvidia/nccl/include puts the wheel's header in the way.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>

#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>
#define FLEXQ_FT_TEST_NCCL_H 1
#endif

#include "ft/comm/deadline.h"
#include "ft/comm/nccl_comm.h"
#include "tests/cpp/check.h"

using flexq_ft::DeviceComm;
using flexq_ft::Error;
namespace ours = flexq_ft::nccl;

#ifdef FLEXQ_FT_TEST_NCCL_H
static_assert(sizeof(ours::UniqueId) == sizeof(ncclUniqueId));
static_assert(alignof(ours::UniqueId) == alignof(ncclUniqueId));
static_assert(sizeof(ours::Comm) == sizeof(ncclComm_t));
static_assert(sizeof(ncclResult_t) == sizeof(int) && sizeof(ncclDataType_t) == sizeof(int));
static_assert(sizeof(ncclRedOp_t) == sizeof(int) && sizeof(cudaStream_t) == sizeof(void*));
static_assert(ours::kSuccess == ncclSuccess && ours::kInProgress == ncclInProgress);
static_assert(ours::kInt8 == ncclInt8 && ours::kFloat32 == ncclFloat32 && ours::kSum == ncclSum);
static_assert(NCCL_VERSION(2, 18, 0) == ours::kLeastVersion);

// The same parameters: each of theirs may be passed where we declare ours.
static_assert(std::is_same_v<decltype(&ncclGetVersion), ncclResult_t (*)(int*)>);
static_assert(std::is_same_v<decltype(&ncclGetUniqueId), ncclResult_t (*)(ncclUniqueId*)>);
static_assert(std::is_same_v<decltype(&ncclCommInitRank),
                             ncclResult_t (*)(ncclComm_t*, int, ncclUniqueId, int)>);
static_assert(std::is_same_v<decltype(&ncclCommDestroy), ncclResult_t (*)(ncclComm_t)>);
static_assert(std::is_same_v<decltype(&ncclCommAbort), ncclResult_t (*)(ncclComm_t)>);
static_assert(
    std::is_same_v<decltype(&ncclCommGetAsyncError), ncclResult_t (*)(ncclComm_t, ncclResult_t*)>);
static_assert(std::is_same_v<decltype(&ncclAllReduce),
                             ncclResult_t (*)(const void*, void*, size_t, ncclDataType_t,
                                              ncclRedOp_t, ncclComm_t, cudaStream_t)>);
static_assert(std::is_same_v<decltype(&ncclAllGather),
                             ncclResult_t (*)(const void*, void*, size_t, ncclDataType_t,
                                              ncclComm_t, cudaStream_t)>);
static_assert(std::is_same_v<decltype(&ncclGetErrorString), const char* (*)(ncclResult_t)>);
static_assert(std::is_same_v<decltype(&ncclGetLastError), const char* (*)(ncclComm_t)>);
#endif

namespace {

// A rank of two whose GPU does as the test says.
class FakeComm final : public DeviceComm {
 public:
  int rank() const override { return 1; }
  int size() const override { return 2; }
  void all_reduce(flexq_ft::Tensor, flexq_ft::Stream) override {}
  void all_gather(flexq_ft::Tensor, flexq_ft::ConstTensor, flexq_ft::Stream) override {}
  void barrier() override {}
  void broadcast(void*, size_t, int) override {}
  std::string fault() override { return trouble; }
  void abort() override { aborted = true; }

  std::string trouble;
  bool aborted = false;
};

}  // namespace

TEST(versions_are_written_as_nccl_writes_them) {
  EXPECT_EQ(ours::version_text(21800), "2.18.0");
  EXPECT_EQ(ours::version_text(23203), "2.32.3");
}

TEST(nccl_is_opened_or_the_error_says_where_it_was_looked_for) {
  try {
    const ours::Api& api = ours::open();
    std::printf("NCCL %s at %s\n", ours::version_text(api.version).c_str(), api.path.c_str());
    EXPECT(api.version >= ours::kLeastVersion && !api.path.empty());
    EXPECT(std::string(std::getenv("NCCL_NVLS_ENABLE")) == "0");
  } catch (const Error& error) {
    EXPECT_EQ(exit_code(error.kind()), 4);
    EXPECT(error.cause().find("the loader's search path, ") != std::string::npos);
    EXPECT_EQ(error.hint(), "pip install nvidia-nccl-cu13");
  }
}

TEST(what_is_done_is_not_waited_for) {
  FakeComm comm;
  int asked = 0;
  flexq_ft::wait_until([&] { return ++asked == 3; }, comm, "step 1", 60.0);
  EXPECT_EQ(asked, 3);
  EXPECT(!comm.aborted);
}

TEST(a_step_that_does_not_end_aborts_and_names_the_rank) {
  FakeComm comm;
  const auto done = [&] { return comm.aborted; };  // aborted kernels leave the GPU
  EXPECT_THROW(flexq_ft::wait_until(done, comm, "step 12", 0.05), Error,
               "step 12 did not end within 0.05 s on rank 1 of 2 (");
  EXPECT(comm.aborted);
}

TEST(a_fault_among_the_gpus_ends_the_wait_before_its_time) {
  FakeComm comm;
  comm.trouble = "remote process exited";
  const auto done = [&] { return comm.aborted; };
  try {
    flexq_ft::wait_until(done, comm, "step 3", 60.0);
    EXPECT(!"wait_until threw nothing");
  } catch (const Error& error) {
    EXPECT_EQ(exit_code(error.kind()), 4);
    EXPECT(std::string(error.what()).find("step 3 failed on rank 1 of 2") == 0);
    EXPECT_EQ(error.cause(), "remote process exited");
  }
}
