// The configs of the stream family: what it takes, what it guesses, and what it refuses. Only the
// refusals of operands need a GPU; no kernel runs.
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/stream_gemm.h"
#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "tests/cpp/w6ax_operands.h"

using namespace flexq_test;

TEST(chains_have_every_group_once) {
  for (const int groups : {1, 2, 7, 8, 9, 32, 86, 108, 224}) {
    int next = 0;
    for (int chain = 0; chain < kStreamChains; ++chain) {
      const StreamRange range = stream_chain(groups, chain);
      EXPECT_EQ(range.first, next);
      EXPECT(range.count >= groups / kStreamChains && range.count <= groups / kStreamChains + 1);
      next += range.count;
    }
    EXPECT_EQ(next, groups);
  }
}

TEST(configs_as_text) {
  const Device device{9, 0, 132, 227 << 10, 228 << 10, 50 << 20, {}};
  for (const int64_t m : {1, 9, 17, 32}) {
    std::set<std::string> seen;
    for (const StreamConfig& config : stream_configs({m, 16, 128, 6}, device)) {
      std::ostringstream out;
      out << config;
      const auto parsed = parse_stream_config(out.str());
      EXPECT(parsed && *parsed == config);
      EXPECT(seen.insert(out.str()).second);
    }
    EXPECT(!seen.empty());
  }
  for (const char* wrong :
       {"", "kernel=direct", "kernel=direct tiles=1 stages=2 split=1 ",
        "kernel=indirect tiles=1 stages=2 split=1", "kernel=direct tiles=01 stages=2 split=1"}) {
    EXPECT(!parse_stream_config(wrong));
  }
}

TEST(guesses) {
  const Device device{9, 0, 132, 227 << 10, 228 << 10, 50 << 20, {}};
  const auto guess = [&](int64_t m, int64_t n) {
    return stream_configs({m, n, 8192, 6}, device)[0];
  };
  const auto is = [](const StreamConfig& config, StreamKernel kernel, int stages, int split) {
    return config.kernel == kernel && config.stages == stages && config.split == split;
  };
  EXPECT(is(guess(1, 12288), StreamKernel::kDirect, 3, 1));  // 768 blocks, 396 at once
  EXPECT(is(guess(8, 19968), StreamKernel::kDirect, 1, 1));  // 1248 blocks, 660 at once
  EXPECT(is(guess(8, 8192), StreamKernel::kAsync, 3, 1));    // 512 blocks, 528 at once
  EXPECT(is(guess(32, 4096), StreamKernel::kAsync, 3, 1));
  EXPECT(is(guess(32, 12288), StreamKernel::kWide, 4, 2));
  EXPECT(is(guess(32, 28672), StreamKernel::kWide, 4, 1));
}

TEST(configs_for_a_gpu_with_little_shared_memory) {
  const Device device{8, 6, 84, 99 << 10, 100 << 10, 6 << 20, {}};
  for (const int64_t m : {1, 9, 17, 32}) {
    for (const int64_t n : {16, 4096, 57344}) {
      const std::vector<StreamConfig> configs = stream_configs({m, n, 4096, 6}, device);
      EXPECT(!configs.empty());
      for (const StreamConfig& config : configs) EXPECT_EQ(config.split, 1);
    }
  }
}

TEST(what_is_not_taken) {
  Device device;
  device.major = 8;
  EXPECT_EQ(stream_why_not({32, 7, 100, 6}, device), "");
  EXPECT(stream_why_not({33, 7, 100, 6}, device).find("up to 32 tokens") != std::string::npos);
  EXPECT(stream_why_not({1, 7, 100, 16}, device).find("6 or 8 bits, not 16") != std::string::npos);
  EXPECT(stream_configs({33, 7, 100, 6}, device).empty());
  EXPECT(stream_why_not({1, 7, (1 << 25) + 1, 6}, device).find("k up to") != std::string::npos);
  device.major = 7;
  EXPECT(stream_why_not({1, 7, 100, 6}, device).find("8.0, and this GPU has 7.0") !=
         std::string::npos);
  if (nothing_to_test()) return;
  const HostWeight w(16, 128, Values::kRandom, 1);
  const GpuWeight w_gpu(w, 16);
  const HostActivations x(4, 128, Values::kRandom, 2);
  const GpuActivations x_gpu(x, 4);
  Poisoned memory(4 * 16 * 4);
  Output y;
  y.values = memory.get();
  const GemmProblem problem{4, 16, 128, 6};
  const StreamConfig config = stream_configs(problem, current_device())[0];
  const auto launch = [&](const Activations& a, const GemmProblem& p, const StreamConfig& c) {
    stream_gemm(y, a, w_gpu.get(), p, c, plain_launch());
  };
  Activations a = x_gpu.get();
  a.order = CodeOrder::kNatural;
  EXPECT_THROW(launch(a, problem, config), std::invalid_argument, "kFragment");
  a = x_gpu.get();
  a.scale_stride = 3;
  EXPECT_THROW(launch(a, problem, config), std::invalid_argument, "stride 3");
  // No kernel runs: memory for so many scales is not needed.
  a.scale_stride = int64_t{1} << 30;
  EXPECT_THROW(launch(a, {4, 16, 300, 6}, config), std::invalid_argument,
               "stride 1073741824; the stream family takes up to 715827882");
  EXPECT_THROW(launch(x_gpu.get(), {33, 16, 128, 6}, config), std::invalid_argument, "m=33");
  StreamConfig other = config;
  other.tiles = 5;
  EXPECT_THROW(launch(x_gpu.get(), problem, other), std::invalid_argument, "tiles=5");
  other = config;
  other.stages = 40;
  EXPECT_THROW(launch(x_gpu.get(), problem, other), std::invalid_argument, "stages=40");
  launch(x_gpu.get(), {0, 16, 128, 6}, config);  // nothing to do
  stream_gemm({}, {}, {}, {0, 16, 128, 6}, config, plain_launch());
}
