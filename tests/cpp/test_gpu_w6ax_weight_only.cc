// Weight-only kernels against the CPU twin and sums in double precision: every config, all sizes
// that are awkward; and the dequantiser, bit by bit. With the argument --small: few and small
// problems, for compute-sanitizer.
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>
#include <sstream>
#include <vector>

#include "flexq_kernels/gpu/dequantize.h"
#include "flexq_kernels/gpu/weight_only_gemm.h"
#include "tests/cpp/activation_writer.h"
#include "tests/cpp/weight_only_case.h"

using namespace flexq_test;

namespace {

std::vector<WeightOnlyConfig> configs_of(int64_t m, int64_t n, int64_t k) {
  const auto configs = weight_only_configs({m, n, k, 16}, current_device());
  EXPECT(!configs.empty());
  return configs;
}

}  // namespace

TEST(all_sizes_types_and_configs_match_the_cpu) {
  if (nothing_to_test()) return;
  Worst worst;
  int runs = 0;
  for (const int64_t k : sizes({1, 64, 100, 128, 129, 192, 576, 1000, 1002, 4096}, {192, 1300})) {
    for (const int64_t n : sizes({1, 15, 16, 17, 100, 576}, {17, 33})) {
      const WeightCase w(n, k, Values::kRandom, static_cast<uint64_t>(n + k));
      for (const FloatType type : kTypes) {
        const Tokens x(64, k, type, static_cast<uint64_t>(n * k));
        const Expected want(x, w);
        std::vector<float> bits;  // of the 64 tokens
        for (const int64_t m : sizes({64, 33, 17, 16, 9, 8, 7, 2, 1}, {64, 17, 9, 3})) {
          const GpuTokens x_gpu(x, m);
          for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
            const std::string where = text({m, n, k, 16}, type, config);
            const std::vector<float> got = run(x_gpu, w, m, config);
            compare(got, want, n, where, worst);
            if (bits.empty()) bits = got;
            compare_bits(got, bits, n, where + ": bits (another batch or config)");
            ++runs;
          }
        }
      }
    }
  }
  std::printf("%d runs; largest error %.3f of its limit, from the CPU twin %.3f of its\n", runs,
              worst.error, worst.from_twin);
}

// More row tiles than blocks fit at once, long chains.
TEST(many_row_tiles) {
  if (nothing_to_test() || small()) return;
  const int64_t n = 13 * 2112 + 5, k = 384;
  const WeightCase w(n, k, Values::kRandom, 3);
  Worst worst;
  for (const FloatType type : kTypes) {
    const Tokens x(64, k, type, 4);
    const Expected want(x, w);
    for (const int64_t m : {64, 32, 16, 8}) {
      const GpuTokens x_gpu(x, m);
      for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
        compare(run(x_gpu, w, m, config), want, n, text({m, n, k, 16}, type, config), worst);
      }
    }
  }
}

// A token with NaN or infinities must not touch its neighbours, also not where their rows meet.
TEST(nan_and_infinity_stay_in_their_rows) {
  if (nothing_to_test()) return;
  const int64_t n = 40;
  for (const int64_t k : {1100, 1101}) {
    const WeightCase w(n, k, Values::kSpecial, 5);
    for (const FloatType type : kTypes) {
      const Tokens clean(64, k, type, 6);
      Tokens x = clean;
      x.set(1, 0, NAN);
      x.set(3, k - 1, NAN);
      x.set(5, 0, INFINITY);
      x.set(5, 700, -INFINITY);
      x.set(6, 300, -INFINITY);
      const Expected want(x, w);
      for (const int64_t m : {8, 16, 32, 64}) {
        const GpuTokens x_gpu(x, m), clean_gpu(clean, m);
        for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
          const std::string where = text({m, n, k, 16}, type, config);
          std::vector<float> expected = run(clean_gpu, w, m, config);
          for (const int64_t token : {1, 3, 5, 6}) {
            for (int64_t i = token * n; i < (token + 1) * n; ++i) {
              expected[static_cast<size_t>(i)] = want.twin[static_cast<size_t>(i)];
              EXPECT(!std::isfinite(want.twin[static_cast<size_t>(i)]));
            }
          }
          compare_bits(run(x_gpu, w, m, config), expected, n, where + ": NaN and infinities");
        }
      }
    }
  }
}

// The largest sums: every code -32, every x of one sign; tiny and subnormal values beside.
TEST(extreme_values) {
  if (nothing_to_test()) return;
  const int64_t n = 33, k = 1152, m = 64;
  const WeightCase w(n, k, Values::kLeast, 7);
  for (const FloatType type : kTypes) {
    Tokens x(m, k, type, 8);
    for (int64_t at = 0; at < k; ++at) {
      x.set(0, at, type == FloatType::kFp16 ? 65504.0f : 1e33f);
      x.set(1, at, 0.0f);
      x.set(2, at, type == FloatType::kFp16 ? 0x1p-24f : 0x1p-100f);
      x.set(3, at, at % 2 == 0 ? 1024.0f : -1024.0f);
      x.set(4, at, at % kGroupSize == 0 ? 30000.0f : 0x1p-10f);
    }
    const Expected want(x, w);
    const GpuTokens x_gpu(x, m);
    for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
      const std::vector<float> got = run(x_gpu, w, m, config);
      for (int64_t i = 0; i < m * n; ++i) {
        const auto at = static_cast<size_t>(i);
        const double value = static_cast<double>(got[at]);
        if (std::fabs(value - want.values[at]) <= want.limits[at]) continue;
        fail(text({m, n, k, 16}, type, config), i / n, i % n, value, want.values[at]);
        break;
      }
    }
  }
}

namespace {

// The output in `type`, step by step, of the fp32 product.
void check_output(const std::vector<float>& product, FloatType type, int parts, const GpuTokens& x,
                  const WeightCase& w, int64_t m, const WeightOnlyConfig& config) {
  const GemmProblem problem{m, w.n, w.k, 16};
  OutputCase y(m, w.n, type, parts & 1, parts & 2, 9);
  weight_only_gemm(y.gpu(), x.get(), w.gpu(), problem, config, plain_launch());
  const std::string where = text(problem, x.type, config) + " -> " + name_of(type) +
                            " bias, residual: " + std::to_string(parts);
  const std::vector<uint8_t> got = y.values.fetch(where.c_str());
  for (int64_t i = 0; i < m * w.n; ++i) {
    float sum = product[static_cast<size_t>(i)];
    if (parts & 1) sum += y.bias[static_cast<size_t>(i % w.n)];
    float want = rounded(sum, type);
    if (parts & 2) want = rounded(want + read_float(y.residual.data(), type, i), type);
    if (same(read_float(got.data(), type, i), want)) continue;
    return fail(where, i / w.n, i % w.n, static_cast<double>(read_float(got.data(), type, i)),
                static_cast<double>(want));
  }
}

}  // namespace

TEST(types_bias_and_residual) {
  if (nothing_to_test()) return;
  const int64_t n = 100, k = 576;
  const WeightCase w(n, k, Values::kRandom, 10);
  for (const FloatType type : kTypes) {
    const Tokens x(64, k, type, 11);
    for (const int64_t m : {5, 13, 31, 61}) {
      const GpuTokens x_gpu(x, m);
      for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
        const std::vector<float> product = run(x_gpu, w, m, config);
        for (const int parts : {0, 1, 2, 3}) {
          check_output(product, FloatType::kFp32, parts, x_gpu, w, m, config);
          check_output(product, type, parts, x_gpu, w, m, config);
        }
      }
    }
  }
}

TEST(repeated_runs_have_the_same_bits) {
  if (nothing_to_test()) return;
  const int64_t n = 576, k = 2048;
  const WeightCase w(n, k, Values::kRandom, 12);
  const Tokens x(64, k, FloatType::kFp16, 13);
  for (const int64_t m : {8, 64}) {
    const GpuTokens x_gpu(x, m);
    for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
      const std::vector<float> first = run(x_gpu, w, m, config);
      for (int i = 0; i < (small() ? 2 : 50); ++i) {
        compare_bits(run(x_gpu, w, m, config), first, n,
                     text({m, n, k, 16}, x.type, config) + ": bits of a repeated run");
      }
    }
  }
}

namespace {

// 50 times: a kernel writes x late, the GEMM reads it and writes an output of its own.
struct Chain {
  static constexpr int kLength = 50, kInputs = 3, kWeights = 2;
  int64_t m, n, k;
  std::vector<std::unique_ptr<GpuTokens>> inputs;
  std::vector<std::unique_ptr<WeightCase>> weights;
  GpuTokens x;  // what every link writes and reads
  DeviceArray<float> outputs;

  Chain(int64_t tokens, int64_t rows, int64_t depth, FloatType type)
      : m(tokens),
        n(rows),
        k(depth),
        x(Tokens(tokens, depth, type, 20), tokens),
        outputs(kLength * tokens * rows) {
    for (uint64_t i = 0; i < kInputs; ++i) {
      inputs.push_back(std::make_unique<GpuTokens>(Tokens(m, k, type, 21 + i), m));
    }
    for (uint64_t i = 0; i < kWeights; ++i) {
      weights.push_back(std::make_unique<WeightCase>(n, k, Values::kRandom, 30 + i));
    }
  }

  void put(const WeightOnlyConfig& config, const Launch& launch, int clocks) const {
    for (int i = 0; i < kLength; ++i) {
      write_late(x.values.data(), inputs[static_cast<size_t>(i * 7 % kInputs)]->values.data(),
                 m * k * 2, clocks, launch);
      weight_only_gemm({outputs.data() + i * m * n, FloatType::kFp32}, x.get(),
                       weights[static_cast<size_t>(i % kWeights)]->gpu(), {m, n, k, 16}, config,
                       launch);
    }
  }
};

void launch_as_graph(const Chain& chain, const WeightOnlyConfig& config) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaStreamBeginCapture(flexq_test::stream(), cudaStreamCaptureModeGlobal), "capture");
  chain.put(config, dependent_launch(), 500);
  check_cuda(cudaStreamEndCapture(flexq_test::stream(), &graph), "capture");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  check_cuda(cudaGraphLaunch(executable, flexq_test::stream()), "graph");
  synchronize("a graph");
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

}  // namespace

TEST(programmatic_chain_equals_plain_launches) {
  if (nothing_to_test()) return;
  const int64_t n = small() ? 48 : 2112 + 16, k = small() ? 1100 : 1536;
  for (const int64_t m : sizes({1, 8, 13, 32, 64}, {8, 64})) {
    Chain chain(m, n, k, m % 2 == 0 ? FloatType::kFp16 : FloatType::kBf16);
    for (const WeightOnlyConfig& config : configs_of(m, n, k)) {
      const std::string where = text({m, n, k, 16}, chain.x.type, config);
      chain.outputs.poison();
      chain.put(config, plain_launch(), 0);
      const std::vector<float> want = chain.outputs.fetch(where.c_str());
      for (const int clocks : {0, 4000}) {
        chain.outputs.poison();
        chain.put(config, dependent_launch(), clocks);
        compare_bits(chain.outputs.fetch(where.c_str()), want, n,
                     where + ": programmatic launches (token: + m per link)");
      }
      chain.outputs.poison();
      synchronize("poison");
      launch_as_graph(chain, config);
      compare_bits(chain.outputs.fetch(where.c_str()), want, n,
                   where + ": a graph of programmatic launches (token: + m per link)");
    }
  }
}

TEST(dequantised_values_are_those_of_the_cpu) {
  if (nothing_to_test()) return;
  for (const int64_t k : sizes({1, 64, 100, 128, 192, 577, 1000, 4096}, {100, 200})) {
    for (const int64_t n : sizes({1, 15, 16, 17, 100, 576}, {17})) {
      const WeightCase w(n, k, Values::kSpecial, static_cast<uint64_t>(n * k));
      std::vector<int8_t> codes(static_cast<size_t>(n * k));
      flexq_kernels::unpack_int6(codes.data(), w.packed.data(), n, k);
      for (const FloatType type : kTypes) {
        DeviceArray<uint16_t> values(n * k);
        dequantize_int6(values.data(), type, w.gpu(), n, k, plain_launch());
        const std::vector<uint16_t> got = values.fetch("dequantised weight");
        for (int64_t i = 0; i < n * k; ++i) {
          const auto at = static_cast<size_t>(i);
          const uint16_t want =
              bits_of(static_cast<float>(codes[at]) * w.scale(i / k, i % k / kGroupSize), type);
          if (got[at] == want) continue;
          std::ostringstream where;
          where << "dequantised to " << name_of(type) << " n=" << n << " k=" << k
                << " (token: row, row: k)";
          fail(where.str(), i / k, i % k, static_cast<double>(value_of(got[at], type)),
               static_cast<double>(value_of(want, type)));
          break;
        }
      }
    }
  }
}

TEST(configs_as_text) {
  Device device;
  device.major = 9;
  device.shared_per_block = 232448;
  for (const int64_t k : {128, 101}) {
    for (const int64_t m : {1, 9, 17, 64}) {
      std::set<std::string> seen;
      for (const WeightOnlyConfig& config : weight_only_configs({m, 16, k, 16}, device)) {
        std::ostringstream out;
        out << config;
        const auto parsed = parse_weight_only_config(out.str());
        EXPECT(parsed && *parsed == config);
        EXPECT(seen.insert(out.str()).second);
      }
      EXPECT(!seen.empty());
    }
  }
  device.shared_per_block = 101376;  // of compute capability 8.6
  for (const int64_t m : {1, 9, 17, 64}) {
    EXPECT(!weight_only_configs({m, 16, 128, 16}, device).empty());
  }
  for (const char* wrong :
       {"", "kernel=direct", "kernel=direct tiles=1 stages=2 ", "kernel=indirect tiles=1 stages=2",
        "kernel=direct tiles=01 stages=2"}) {
    EXPECT(!parse_weight_only_config(wrong));
  }
}

TEST(what_is_not_taken) {
  Device device;
  device.major = 8;
  const auto why = [&](const GemmProblem& p) { return weight_only_why_not(p, device); };
  EXPECT_EQ(why({64, 7, 101, 16}), "");
  EXPECT(why({65, 7, 100, 16}).find("up to 64 tokens") != std::string::npos);
  EXPECT(why({1, 7, 100, 8}).find("16 bits, not 8") != std::string::npos);
  EXPECT(why({1, 7, 16777217, 16}).find("k up to 16777216") != std::string::npos);
  EXPECT(weight_only_configs({65, 7, 100, 16}, device).empty());
  device.major = 7;
  EXPECT(why({1, 7, 100, 16}).find("8.0, and this GPU has 7.0") != std::string::npos);
  if (nothing_to_test()) return;
  const WeightCase w(16, 128, Values::kRandom, 1);
  const GpuTokens x(Tokens(4, 128, FloatType::kFp16, 2), 4);
  DeviceArray<float> y(4 * 16);
  const GemmProblem problem{4, 16, 128, 16};
  const WeightOnlyConfig config = configs_of(4, 16, 128)[0];
  const auto launch = [&](FloatType y_type, const FloatActivations& a, const GemmProblem& p,
                          const WeightOnlyConfig& c) {
    weight_only_gemm({y.data(), y_type}, a, w.gpu(), p, c, plain_launch());
  };
  constexpr FloatType kFp32 = FloatType::kFp32;
  EXPECT_THROW(launch(kFp32, x.get(), {65, 16, 128, 16}, config), std::invalid_argument, "m=65");
  EXPECT_THROW(launch(FloatType::kBf16, x.get(), problem, config), std::invalid_argument,
               "of the type of the activations");
  EXPECT_THROW(launch(kFp32, {x.values.data(), kFp32}, problem, config), std::invalid_argument,
               "fp16 or bf16");
  EXPECT_THROW(launch(kFp32, {nullptr, FloatType::kFp16}, problem, config), std::invalid_argument,
               "null");
  EXPECT_THROW(launch(kFp32, {x.values.data() + 1, FloatType::kFp16}, problem, config),
               std::invalid_argument, "16-byte");
  EXPECT_THROW(launch(kFp32, x.get(), problem, {StreamKernel::kDirect, 5, 2}),
               std::invalid_argument, "tiles=5");
  launch(kFp32, x.get(), {0, 16, 128, 16}, config);  // nothing to do
  EXPECT_THROW(dequantize_int6(y.data(), kFp32, w.gpu(), 16, 128, plain_launch()),
               std::invalid_argument, "fp16 or bf16");
  EXPECT_THROW(dequantize_int6(y.data(), FloatType::kFp16, w.gpu(), 16, 0, plain_launch()),
               std::invalid_argument, "[16, 0]");
}
