// What rope and decode attention rely on: behind a full edge (ft/core/stream.h) kernels that have
// not waited yet read what was written in front of it, past no stale line of an L1.
#include "tests/cpp/early_reads.h"
#include "tests/cpp/gpu_arrays.h"

namespace flexq_ft {

using flexq_test::EarlyReads;

TEST(reads_before_the_wait_find_what_lies_before_the_full_edge) {
  if (without_gpu()) return;
  constexpr int kSteps = 200, kLaunches = 20;
  const Buffer memory(sizeof(EarlyReads), MemoryKind::kWorkspace, Device::kCuda);
  cuda::fill(memory.data(), 0, memory.bytes(), stream());
  const auto steps = [&] {
    auto* const state = static_cast<EarlyReads*>(memory.data());
    for (int i = 0; i < kSteps; ++i) flexq_test::put_step(state, stream());
  };
  steps();
  cuda::Graph graph;
  graph.capture(stream(), steps);
  for (int i = 0; i < kLaunches; ++i) graph.launch(stream());
  EarlyReads got;
  cuda::copy(&got, memory.data(), sizeof(got), stream());
  cuda::synchronize(stream());
  std::printf("%d blocks read before the first kernel of their step had ended\n", got.early);
  EXPECT_EQ(got.step, kSteps * (1 + kLaunches));
  EXPECT_EQ(got.wrong, 0);
}

}  // namespace flexq_ft
