#include <cstdlib>
#include <vector>

#include "ft/comm/device_comm.h"
#include "ft/comm/host_bootstrap.h"
#include "ft/comm/mpi_library.h"
#include "ft/comm/mpi_session.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

TEST(one_rank_reduces_to_what_it_has_and_gathers_a_copy) {
  const auto comm = make_single_comm();
  std::vector<float> x = {1.0f, 2.0f, 3.0f};
  std::vector<float> out(3);
  comm->all_reduce(Tensor(x.data(), DataType::kFp32, {3}), Stream{});
  EXPECT_EQ(x[2], 3.0f);
  comm->all_gather(Tensor(out.data(), DataType::kFp32, {1, 3}),
                   ConstTensor(x.data(), DataType::kFp32, {3}), Stream{});
  EXPECT(out == x);
}

TEST(a_gather_into_too_little_memory_is_refused) {
  const auto comm = make_single_comm();
  std::vector<float> x(4);
  const ConstTensor from(x.data(), DataType::kFp32, {4});
  EXPECT_THROW(comm->all_gather(Tensor(x.data(), DataType::kFp32, {1, 3}), from, Stream{}), Error,
               "all_gather of [4] into [1, 3]");
}

TEST(only_fp32_is_reduced) {
  const auto comm = make_single_comm();
  std::vector<Half> x(4);
  EXPECT_THROW(comm->all_reduce(Tensor(x.data(), DataType::kFp16, {4}), Stream{}), Error, "fp16");
}

TEST(launchers_are_known_by_their_environment) {
  const char* names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
  for (const char* name : names) unsetenv(name);
  EXPECT_EQ(launched_processes(), 1);
  EXPECT_EQ(make_host_bootstrap()->size(), 1);
  for (const char* name : names) {
    setenv(name, "3", 1);
    EXPECT_EQ(launched_processes(), 3);
    unsetenv(name);
  }
}

// This test lies where neither an installation nor a build tree has the library beside it.
TEST(without_the_library_the_error_says_what_to_type) {
  EXPECT_EQ(find_mpi_library(), "");
  try {
    make_mpi_comm();
    EXPECT(!"make_mpi_comm threw nothing");
  } catch (const Error& error) {
    EXPECT_EQ(exit_code(error.kind()), 4);
    EXPECT_EQ(error.hint(), "pip install 'flexq-ft[mpi]'");
  }
}

TEST(several_processes_without_the_library_are_refused) {
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  EXPECT_THROW(make_host_bootstrap(), Error, "MPI is not available");
  unsetenv("OMPI_COMM_WORLD_SIZE");
}
