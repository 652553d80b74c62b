// The stream family against the CPU twin: every config of all kernels, all sizes that are awkward.
// With the argument --small: few and small problems, for compute-sanitizer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <vector>

#include "flexq_kernels/gpu/stream_gemm.h"
#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "tests/cpp/activation_writer.h"
#include "tests/cpp/w6ax_operands.h"

using namespace flexq_test;

namespace {

std::string text(const GemmProblem& problem, const StreamConfig& config) {
  std::ostringstream out;
  out << problem << " " << config;
  return out.str();
}

std::vector<float> run(Poisoned& memory, const GpuActivations& x, const GpuWeight& w,
                       const GemmProblem& problem, const StreamConfig& config) {
  memory.poison();
  Output y;
  y.values = memory.get();
  stream_gemm(y, x.get(), w.get(), problem, config, plain_launch());
  return memory.fetch<float>(static_cast<size_t>(problem.m * problem.n), text(problem, config));
}

std::vector<int32_t> run_sums(Poisoned& memory, const GpuActivations& x, const GpuWeight& w,
                              const GemmProblem& problem, const StreamConfig& config) {
  memory.poison();
  auto* sums = static_cast<int32_t*>(memory.get());
  stream_group_sums(sums, x.get(), w.get(), problem, config, plain_launch());
  return memory.fetch<int32_t>(static_cast<size_t>(problem.m * problem.n * group_count(problem.k)),
                               "sums " + text(problem, config));
}

void fail(const char* what, const std::string& where, int64_t token, int64_t row, int64_t group,
          double got, double want) {
  char line[256];
  std::snprintf(line, sizeof(line), ": %s at token %lld row %lld group %lld: got %.9g, want %.9g",
                what, static_cast<long long>(token), static_cast<long long>(row),
                static_cast<long long>(group), got, want);
  flexq_test::report_failure(__FILE__, __LINE__, where + line);
}

// Against values of a problem with `stride` rows of the weight, of which the first n were taken.
void compare(const std::vector<float>& got, const std::vector<int32_t>& sums, const Expected& want,
             const GemmProblem& p, int64_t stride, const std::string& where) {
  const int64_t groups = group_count(p.k);
  double largest = 0, worst_twin = 0;
  for (int64_t i = 0; i < p.m * p.n; ++i) {
    const int64_t token = i / p.n, row = i % p.n;
    const auto at = static_cast<size_t>(token * stride + row);
    for (int64_t g = 0; g < groups; ++g) {
      const int32_t sum = sums[static_cast<size_t>(i * groups + g)];
      const int32_t expected = want.sums[at * static_cast<size_t>(groups) + static_cast<size_t>(g)];
      if (sum != expected) return fail("group sum", where, token, row, g, sum, expected);
    }
    const double value = static_cast<double>(got[static_cast<size_t>(i)]);
    if (!(std::fabs(value - want.values[at]) <= want.limits[at])) {
      return fail("value", where, token, row, -1, value, want.values[at]);
    }
    largest = std::max(largest, std::fabs(want.values[at]));
    worst_twin = std::max(worst_twin, std::fabs(value - static_cast<double>(want.twin[at])));
  }
  if (!(worst_twin <= 1e-5 * largest)) {
    fail("largest difference from the CPU twin", where, -1, -1, -1, worst_twin, 1e-5 * largest);
  }
}

// Rows of a batch must have these bits, whatever the batch and the config.
void compare_bits(const std::vector<float>& got, const std::vector<float>& want,
                  const GemmProblem& p, const std::string& where) {
  for (int64_t i = 0; i < p.m * p.n; ++i) {
    const float a = got[static_cast<size_t>(i)], b = want[static_cast<size_t>(i)];
    if (std::memcmp(&a, &b, 4) == 0) continue;
    return fail("bits (another batch or config)", where, i / p.n, i % p.n, -1, a, b);
  }
}

std::vector<StreamConfig> configs_of(const GemmProblem& problem) {
  std::vector<StreamConfig> configs = stream_configs(problem, current_device());
  EXPECT(!configs.empty());
  return configs;
}

std::vector<int64_t> sizes(std::vector<int64_t> all, std::vector<int64_t> few) {
  return small() ? few : all;
}

}  // namespace

TEST(all_sizes_and_configs_match_the_cpu) {
  if (nothing_to_test()) return;
  const int64_t most_n = small() ? 33 : 576, most_m = kStreamMaxTokens;
  Poisoned memory(static_cast<size_t>(most_m * most_n) * 32 * 4);
  int runs = 0;
  for (const int64_t k : sizes({64, 128, 192, 576, 1000, 4096}, {192, 1300})) {
    const HostWeight w(most_n, k, Values::kRandom, 1);
    const HostActivations x(most_m, k, Values::kRandom, 2);
    const Expected want(x, w);
    for (const int64_t n : sizes({1, 15, 16, 17, 100, 576}, {17, 33})) {
      const GpuWeight w_gpu(w, n);
      std::vector<float> bits;  // of the first batch
      for (const int64_t m : sizes({32, 31, 17, 16, 15, 9, 8, 7, 3, 2, 1}, {32, 17, 9, 3})) {
        const GpuActivations x_gpu(x, m);
        const GemmProblem problem{m, n, k, 8};
        for (const StreamConfig& config : configs_of(problem)) {
          const std::vector<float> got = run(memory, x_gpu, w_gpu, problem, config);
          const auto sums = run_sums(memory, x_gpu, w_gpu, problem, config);
          compare(got, sums, want, problem, most_n, text(problem, config));
          if (bits.empty()) bits = got;
          compare_bits(got, bits, problem, text(problem, config));
          ++runs;
        }
      }
    }
  }
  std::printf("%d runs\n", runs);
}

// More row tiles than blocks fit at once, long chains.
TEST(many_row_tiles) {
  if (nothing_to_test() || small()) return;
  for (const int64_t n : {2112 + 1, 17 * 2112 + 5}) {
    const int64_t k = n < 10000 ? 1152 : 384;
    const HostWeight w(n, k, Values::kRandom, 3);
    const GpuWeight w_gpu(w, n);
    const HostActivations x(kStreamMaxTokens, k, Values::kRandom, 4);
    const Expected want(x, w);
    Poisoned memory(static_cast<size_t>(kStreamMaxTokens * n * group_count(k)) * 4);
    for (const int64_t m : {32, 16, 8}) {
      const GpuActivations x_gpu(x, m);
      const GemmProblem problem{m, n, k, 8};
      for (const StreamConfig& config : stream_configs(problem, current_device())) {
        compare(run(memory, x_gpu, w_gpu, problem, config),
                run_sums(memory, x_gpu, w_gpu, problem, config), want, problem, n,
                text(problem, config));
      }
    }
  }
}

TEST(extreme_values) {
  if (nothing_to_test()) return;
  const int64_t n = 40, k = 1100, groups = group_count(k);
  const HostWeight w(n, k, Values::kExtreme, 5);
  const GpuWeight w_gpu(w, n);
  HostActivations x(kStreamMaxTokens, k, Values::kExtreme, 6);
  for (int64_t g = 0; g < groups; ++g) {  // token 1: zero groups, as the quantiser writes them
    x.scales[static_cast<size_t>(groups + g)] = 0.0f;
    std::fill_n(x.codes.begin() + static_cast<long>((groups + g) * 128), 128, int8_t{0});
  }
  const Expected want(x, w);
  Poisoned memory(static_cast<size_t>(kStreamMaxTokens * n * groups) * 4);
  for (const int64_t m : {8, 16, 32}) {
    const GemmProblem problem{m, n, k, 8};
    const GpuActivations x_gpu(x, m);
    HostActivations with_nan = x;
    with_nan.scales[static_cast<size_t>(5 * groups + 3)] = NAN;  // token 5
    const GpuActivations nan_gpu(with_nan, m);
    for (const StreamConfig& config : configs_of(problem)) {
      const std::string where = text(problem, config);
      const std::vector<float> got = run(memory, x_gpu, w_gpu, problem, config);
      compare(got, run_sums(memory, x_gpu, w_gpu, problem, config), want, problem, n, where);
      const std::vector<float> nan_row = run(memory, nan_gpu, w_gpu, problem, config);
      for (int64_t i = 0; i < m * n; ++i) {
        const float value = nan_row[static_cast<size_t>(i)];
        const bool right = i / n == 5 ? std::isnan(value) : value == got[static_cast<size_t>(i)];
        if (right) continue;
        fail("a NaN scale of token 5", where, i / n, i % n, -1, static_cast<double>(value),
             static_cast<double>(got[static_cast<size_t>(i)]));
        break;
      }
    }
  }
}

namespace {

// What the output must be, of the fp32 values, rounded as gpu/gemm.h says.
template <typename T>
void check_rounding(FloatType type, const std::vector<float>& product, Poisoned& memory,
                    const GpuActivations& x, const GpuWeight& w, const GemmProblem& problem,
                    const StreamConfig& config) {
  const auto count = static_cast<size_t>(problem.m * problem.n);
  std::vector<float> bias;
  std::vector<T> residual;
  for (int64_t i = 0; i < problem.n; ++i) bias.push_back(0.37f * static_cast<float>(i % 11) - 1);
  for (size_t i = 0; i < count; ++i) {
    residual.push_back(flexq_ft::from_float<T>(0.51f * static_cast<float>(i % 23) - 4));
  }
  const Buffer bias_gpu = on_gpu(bias), residual_gpu = on_gpu(residual);
  for (const int parts : {0, 1, 2, 3}) {  // bit 0: bias, bit 1: residual, here in the output
    memory.poison();
    Output y;
    y.values = memory.get();
    y.type = type;
    if (parts & 1) y.bias = data<float>(bias_gpu);
    if (parts & 2) {
      flexq_ft::cuda::copy(y.values, residual_gpu.data(), residual_gpu.bytes(), queue());
      y.residual = y.values;
    }
    stream_gemm(y, x.get(), w.get(), problem, config, plain_launch());
    const std::vector<T> got = memory.fetch<T>(count, text(problem, config));
    for (size_t i = 0; i < count; ++i) {
      const auto column = i % static_cast<size_t>(problem.n);
      const float sum = parts & 1 ? product[i] + bias[column] : product[i];
      T want = flexq_ft::from_float<T>(sum);
      if (parts & 2) {
        want = flexq_ft::from_float<T>(flexq_ft::to_float(want) + flexq_ft::to_float(residual[i]));
      }
      if (std::memcmp(&want, &got[i], sizeof(T)) == 0) continue;
      fail("rounding", text(problem, config), static_cast<int64_t>(i) / problem.n,
           static_cast<int64_t>(column), parts, static_cast<double>(flexq_ft::to_float(got[i])),
           static_cast<double>(flexq_ft::to_float(want)));
      break;
    }
  }
}

}  // namespace

TEST(types_bias_and_residual) {
  if (nothing_to_test()) return;
  const int64_t n = 100, k = 576;
  const HostWeight w(n, k, Values::kRandom, 7);
  const GpuWeight w_gpu(w, n);
  const HostActivations x(kStreamMaxTokens, k, Values::kRandom, 8);
  Poisoned memory(kStreamMaxTokens * n * 4);
  for (const int64_t m : {5, 13, 31}) {
    const GemmProblem problem{m, n, k, 6};
    const GpuActivations x_gpu(x, m);
    for (const StreamConfig& config : stream_configs(problem, current_device())) {
      const std::vector<float> product = run(memory, x_gpu, w_gpu, problem, config);
      const auto check = [&](auto tag, FloatType type) {
        check_rounding<decltype(tag)>(type, product, memory, x_gpu, w_gpu, problem, config);
      };
      check(float{}, FloatType::kFp32);
      check(flexq_ft::Half{}, FloatType::kFp16);
      check(flexq_ft::BFloat16{}, FloatType::kBf16);
    }
  }
}

namespace {

// 50 times: a kernel writes x late, the GEMM reads it and writes an output of its own.
struct Chain {
  static constexpr int kLength = 50, kInputs = 3;
  GemmProblem problem;
  std::vector<GpuActivations> inputs;
  std::vector<GpuWeight> weights;
  GpuActivations x;  // what every link writes and reads
  Poisoned outputs;

  Chain(const GemmProblem& p, const std::vector<HostActivations>& from,
        const std::vector<HostWeight>& of)
      : problem(p), x(from[0], p.m), outputs(static_cast<size_t>(kLength * p.m * p.n) * 4) {
    for (const HostActivations& a : from) inputs.emplace_back(a, p.m);
    for (const HostWeight& w : of) weights.emplace_back(w, p.n);
  }

  void put(const StreamConfig& config, const Launch& launch, int clocks) const {
    for (int i = 0; i < kLength; ++i) {
      const GpuActivations& from = inputs[static_cast<size_t>(i * 7 % kInputs)];
      flexq_test::write_late(x.codes.data(), from.codes.data(),
                             static_cast<int64_t>(x.codes.bytes()), clocks, launch);
      flexq_test::write_late(x.scales.data(), from.scales.data(),
                             static_cast<int64_t>(x.scales.bytes()), clocks, launch);
      Output y;
      y.values = static_cast<float*>(outputs.get()) + i * problem.m * problem.n;
      stream_gemm(y, x.get(), weights[static_cast<size_t>(i % 2)].get(), problem, config, launch);
    }
  }

  std::vector<float> fetch(const StreamConfig& config) const {
    return outputs.fetch<float>(static_cast<size_t>(kLength * problem.m * problem.n),
                                "chain " + text(problem, config));
  }
};

}  // namespace

TEST(programmatic_chain_equals_plain_launches) {
  if (nothing_to_test()) return;
  const int64_t n = small() ? 48 : 2112 + 16, k = small() ? 1100 : 1536;
  std::vector<HostActivations> inputs;
  std::vector<HostWeight> weights;
  for (uint32_t i = 0; i < Chain::kInputs; ++i)
    inputs.emplace_back(kStreamMaxTokens, k, Values::kRandom, 20 + i);
  for (uint32_t i = 0; i < 2; ++i) weights.emplace_back(n, k, Values::kRandom, 30 + i);
  for (const int64_t m : sizes({1, 8, 13, 32}, {8, 32})) {
    Chain chain({m, n, k, 8}, inputs, weights);
    for (const StreamConfig& config : stream_configs(chain.problem, current_device())) {
      chain.outputs.poison();
      chain.put(config, plain_launch(), 0);
      const std::vector<float> want = chain.fetch(config);
      const auto check = [&](const char* how) {
        const std::vector<float> got = chain.fetch(config);
        for (size_t i = 0; i < want.size(); ++i) {
          if (std::memcmp(&got[i], &want[i], 4) == 0) continue;
          const auto at = static_cast<int64_t>(i);
          return fail(how, text(chain.problem, config), at / n % m, at % n, at / n / m,
                      static_cast<double>(got[i]), static_cast<double>(want[i]));
        }
      };
      for (const int clocks : {0, 4000}) {
        chain.outputs.poison();
        flexq_ft::cuda::synchronize(queue());
        chain.put(config, dependent_launch(), clocks);
        check("programmatic launches (group: link of the chain)");
      }
      chain.outputs.poison();
      flexq_ft::cuda::Graph graph;
      graph.capture(queue(), [&] { chain.put(config, dependent_launch(), 500); });
      graph.launch(queue());
      check("a graph of programmatic launches (group: link of the chain)");
    }
  }
}

TEST(repeated_runs_have_the_same_bits) {
  if (nothing_to_test()) return;
  const int64_t n = 576, k = 2048;
  const HostWeight w(n, k, Values::kRandom, 9);
  const GpuWeight w_gpu(w, n);
  const HostActivations x(kStreamMaxTokens, k, Values::kRandom, 10);
  Poisoned memory(kStreamMaxTokens * n * 4);
  for (const int64_t m : {8, 32}) {
    const GemmProblem problem{m, n, k, 8};
    const GpuActivations x_gpu(x, m);
    for (const StreamConfig& config : stream_configs(problem, current_device())) {
      const std::vector<float> first = run(memory, x_gpu, w_gpu, problem, config);
      for (int i = 0; i < (small() ? 2 : 100); ++i) {
        compare_bits(run(memory, x_gpu, w_gpu, problem, config), first, problem,
                     text(problem, config));
      }
    }
  }
}
