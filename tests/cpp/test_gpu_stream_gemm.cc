// The stream family against the CPU twin: every config of both kernels, all sizes that are awkward.
// With the argument --small: few and small problems, for compute-sanitizer.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <vector>

#include "flexq_kernels/gpu/stream_gemm.h"
#include "flexq_kernels/gpu/stream_gemm_args.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/core/dtype.h"
#include "tests/cpp/activation_writer.h"
#include "tests/cpp/check.h"

using namespace flexq_kernels;
using namespace flexq_kernels::gpu;
using flexq_ft::Buffer;

namespace {

constexpr size_t kGuard = 4096;
constexpr uint8_t kPoison = 0xff;  // NaN in every type
bool g_small = false;

void on_alarm(int) {
  const char text[] = "\nFAIL: still running after its time limit (a kernel hangs?)\n";
  if (write(1, text, sizeof(text) - 1) < 0) _exit(4);
  _exit(3);
}

// Before main: the arguments, and an end to every hang.
__attribute__((constructor)) void start(int argc, char** argv, char**) {
  for (int i = 1; i < argc; ++i) g_small = g_small || std::strcmp(argv[i], "--small") == 0;
  signal(SIGALRM, on_alarm);
  alarm(g_small ? 900 : 60);
}

bool no_gpu() {
  if (flexq_ft::cuda::device_count() > 0) return false;
  std::printf("skipped: no GPU\n");
  return true;
}

flexq_ft::Stream stream() {
  static flexq_ft::cuda::Queue queue;
  return queue.stream();
}
Launch plain() { return {stream().handle, false}; }
Launch programmatic() { return {stream().handle, true}; }

template <typename T>
Buffer on_gpu(const std::vector<T>& values) {
  Buffer buffer(values.size() * sizeof(T), flexq_ft::MemoryKind::kWorkspace,
                flexq_ft::Device::kCuda);
  flexq_ft::cuda::copy(buffer.data(), values.data(), buffer.bytes(), stream());
  flexq_ft::cuda::synchronize(stream());
  return buffer;
}

template <typename T>
T* data(const Buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

// ---- operands ----

enum class Values { kRandom, kExtreme };

struct HostWeight {
  int64_t n, k;
  std::vector<uint8_t> packed;
  std::vector<float> scales;  // [groups][n]

  HostWeight(int64_t rows, int64_t depth, Values values, uint32_t seed)
      : n(rows), k(depth), packed(static_cast<size_t>(packed_bytes(rows, depth))) {
    std::mt19937 random(seed);
    std::vector<int8_t> codes(static_cast<size_t>(n * k));
    for (int8_t& c : codes) {
      c = values == Values::kExtreme ? int8_t{-32} : static_cast<int8_t>(random() % 64) - 32;
    }
    pack_int6(packed.data(), codes.data(), n, k);
    for (int64_t i = 0; i < group_count(k) * n; ++i) {
      const float wide = i % 7 == 0 ? 65504.0f : 1e-5f;  // the second is subnormal in fp16
      const float usual = 0.001f * static_cast<float>(1 + random() % 20);
      const auto half =
          flexq_ft::from_float<flexq_ft::Half>(values == Values::kExtreme ? wide : usual);
      scales.push_back(flexq_ft::to_float(half));
    }
  }

  // Of the first `rows` rows, as the kernels read them.
  std::vector<uint16_t> tiled(int64_t rows) const {
    std::vector<uint16_t> out(static_cast<size_t>(row_tiles(rows) * group_count(k) * 16), 0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t g = 0; g < group_count(k); ++g) {
        const auto half =
            flexq_ft::from_float<flexq_ft::Half>(scales[static_cast<size_t>(g * n + r)]);
        std::memcpy(&out[static_cast<size_t>((r / 16 * group_count(k) + g) * 16 + r % 16)], &half,
                    2);
      }
    }
    return out;
  }
};

struct GpuWeight {
  Buffer codes, scales;

  GpuWeight(const HostWeight& w, int64_t rows)
      : codes(on_gpu(std::vector<uint8_t>(
            w.packed.begin(), w.packed.begin() + static_cast<long>(packed_bytes(rows, w.k))))),
        scales(on_gpu(w.tiled(rows))) {}
  Weight get() const { return {data<uint8_t>(codes), data<uint16_t>(scales)}; }
};

struct HostActivations {
  int64_t m, k;
  std::vector<int8_t> codes;  // [m][groups * 128], natural
  std::vector<float> scales;  // [m][groups]

  HostActivations(int64_t tokens, int64_t depth, Values values, uint32_t seed)
      : m(tokens), k(depth), codes(static_cast<size_t>(tokens * group_count(depth) * 128), 0) {
    std::mt19937 random(seed);
    const int64_t row = group_count(k) * 128;
    for (int64_t i = 0; i < m * row; ++i) {
      if (i % row >= k) continue;
      codes[static_cast<size_t>(i)] =
          values == Values::kExtreme ? int8_t{-128} : static_cast<int8_t>(random() % 256 - 128);
    }
    for (int64_t i = 0; i < m * group_count(k); ++i) {
      scales.push_back(0.001f * static_cast<float>(1 + random() % 50));
    }
  }

  std::vector<int8_t> fragments(int64_t tokens) const {
    std::vector<int8_t> out(static_cast<size_t>(tokens * group_count(k) * 128));
    for (size_t i = 0; i < out.size() / 4; ++i) {
      const size_t w = i % 32;
      std::memcpy(&out[4 * (i - w + w % 4 * 8 + w / 8 * 2 + w / 4 % 2)], &codes[4 * i], 4);
    }
    return out;
  }

  // What lies between m and the stride is NaN: it must not matter.
  std::vector<float> by_group(int64_t tokens) const {
    const int64_t stride = scale_stride_of(tokens), groups = group_count(k);
    std::vector<float> out(static_cast<size_t>(groups * stride), NAN);
    for (int64_t i = 0; i < tokens * groups; ++i) {
      out[static_cast<size_t>(i % groups * stride + i / groups)] = scales[static_cast<size_t>(i)];
    }
    return out;
  }
};

struct GpuActivations {
  Buffer codes, scales;
  int64_t stride;

  GpuActivations(const HostActivations& x, int64_t tokens)
      : codes(on_gpu(x.fragments(tokens))),
        scales(on_gpu(x.by_group(tokens))),
        stride(scale_stride_of(tokens)) {}
  Activations get() const {
    return {data<int8_t>(codes), data<float>(scales), stride, CodeOrder::kFragment};
  }
};

// ---- what is expected ----

struct Expected {
  std::vector<int32_t> sums;  // [m][n][groups]
  std::vector<double> values, limits;
  std::vector<float> twin;

  Expected(const HostActivations& x, const HostWeight& w) {
    const int64_t groups = group_count(w.k);
    const GemmProblem problem{x.m, w.n, w.k, 8};
    sums.resize(static_cast<size_t>(x.m * w.n * groups));
    group_sums_w6ax(sums.data(), x.codes.data(), w.packed.data(), problem);
    for (int64_t i = 0; i < x.m * w.n; ++i) {
      double value = 0, magnitude = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const double term =
            static_cast<double>(sums[static_cast<size_t>(i * groups + g)]) *
            static_cast<double>(w.scales[static_cast<size_t>(g * w.n + i % w.n)]) *
            static_cast<double>(x.scales[static_cast<size_t>(i / w.n * groups + g)]);
        value += term;
        magnitude += std::fabs(term);
      }
      values.push_back(value);
      limits.push_back((static_cast<double>(groups) + 8) * 0x1p-23 * magnitude);
    }
    std::vector<uint16_t> halves;
    for (const float s : w.scales) {
      const auto half = flexq_ft::from_float<flexq_ft::Half>(s);
      uint16_t bits;
      std::memcpy(&bits, &half, 2);
      halves.push_back(bits);
    }
    twin.resize(values.size());
    gemm_w6ax(twin.data(), {x.codes.data(), x.scales.data()}, {w.packed.data(), halves.data()},
              nullptr, problem);
  }
};

// ---- runs ----

// Device memory between guard bands, poisoned before each run.
class Poisoned {
 public:
  explicit Poisoned(size_t bytes)
      : memory_(bytes + 2 * kGuard, flexq_ft::MemoryKind::kWorkspace, flexq_ft::Device::kCuda) {}

  void poison() { flexq_ft::cuda::fill(memory_.data(), kPoison, memory_.bytes(), stream()); }
  void* get() const { return data<char>(memory_) + kGuard; }

  template <typename T>
  std::vector<T> fetch(size_t count, const std::string& what) const {
    const size_t bytes = count * sizeof(T);
    std::vector<uint8_t> all(bytes + 2 * kGuard);
    flexq_ft::cuda::copy(all.data(), memory_.data(), all.size(), stream());
    flexq_ft::cuda::synchronize(stream());
    for (size_t i = 0; i < kGuard; ++i) {
      if (all[i] == kPoison && all[kGuard + bytes + i] == kPoison) continue;
      flexq_test::report_failure(
          __FILE__, __LINE__,
          what + ": wrote outside its output, byte " +
              std::to_string(all[i] != kPoison ? static_cast<int64_t>(i) - int64_t{kGuard}
                                               : static_cast<int64_t>(bytes + i)) +
              " of " + std::to_string(bytes));
      break;
    }
    std::vector<T> out(count);
    if (bytes > 0) std::memcpy(out.data(), all.data() + kGuard, bytes);
    return out;
  }

 private:
  Buffer memory_;
};

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
  stream_gemm(y, x.get(), w.get(), problem, config, plain());
  return memory.fetch<float>(static_cast<size_t>(problem.m * problem.n), text(problem, config));
}

std::vector<int32_t> run_sums(Poisoned& memory, const GpuActivations& x, const GpuWeight& w,
                              const GemmProblem& problem, const StreamConfig& config) {
  memory.poison();
  auto* sums = static_cast<int32_t*>(memory.get());
  stream_group_sums(sums, x.get(), w.get(), problem, config, plain());
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
  // Short rings and low limits come round more often.
  for (size_t i = configs.size(); i-- > 0;) {
    StreamConfig config = configs[i];
    if (config.kernel == StreamKernel::kAsync) continue;
    config.stages = i % 2 == 0 ? 3 : 4;
    config.limit = i % 2 == 0 ? 2 : 3;
    if (std::find(configs.begin(), configs.end(), config) == configs.end()) {
      configs.push_back(config);
    }
  }
  return configs;
}

std::vector<int64_t> sizes(std::vector<int64_t> all, std::vector<int64_t> small) {
  return g_small ? small : all;
}

}  // namespace

TEST(every_group_of_every_row_tile_is_multiplied_once) {
  for (const int row_tiles : {1, 2, 37, 132, 133, 700}) {
    for (const int workers : {1, 2, 33, 66, 132}) {
      if (workers > row_tiles) continue;
      for (const int tiles : {2, 4, 6, 8}) {
        for (const int groups : {1, 2, 7, 8, 9, 32, 86}) {
          for (const int chains : {1, 2, 4, 8}) {
            std::vector<int> seen(static_cast<size_t>(row_tiles * groups), 0);
            for (int worker = 0; worker < workers; ++worker) {
              const StreamRange share = even_part(worker, workers, row_tiles);
              EXPECT(share.count >= 1);
              const int passes = stream_passes(share.count, tiles);
              for (int first = 0; first < kStreamChains; first += chains) {
                const int blocks = stream_blocks(groups, first);
                StreamCursor cursor(share, passes, blocks);
                for (int pass = 0; pass < passes; ++pass) {
                  const StreamRange part = even_part(pass, passes, share.count);
                  EXPECT(part.count >= 1 && part.count <= tiles);
                  for (int block = 0; block < blocks; ++block) {
                    for (int r = 0; r < part.count; ++r) {
                      const int tile = share.first + part.first + r;
                      EXPECT(cursor.left() && cursor.tile() == tile && cursor.block() == block);
                      cursor.advance();
                      const int count = stream_block_groups(groups, first, chains, block);
                      EXPECT(count >= 1 && count <= chains);
                      for (int g = 0; g < count; ++g) {
                        ++seen[static_cast<size_t>(tile * groups + first + block * 8 + g)];
                      }
                    }
                  }
                }
                EXPECT(!cursor.left());
              }
            }
            EXPECT_EQ(*std::min_element(seen.begin(), seen.end()), 1);
            EXPECT_EQ(*std::max_element(seen.begin(), seen.end()), 1);
          }
        }
      }
    }
  }
}

TEST(all_sizes_and_configs_match_the_cpu) {
  if (no_gpu()) return;
  const int64_t most_n = g_small ? 33 : 576, most_m = 64;
  Poisoned memory(static_cast<size_t>(most_m * most_n) * 32 * 4);
  int runs = 0;
  for (const int64_t k : sizes({64, 128, 192, 576, 1000, 4096}, {192, 1300})) {
    const HostWeight w(most_n, k, Values::kRandom, 1);
    const HostActivations x(most_m, k, Values::kRandom, 2);
    const Expected want(x, w);
    for (const int64_t n : sizes({1, 15, 16, 17, 100, 576}, {17, 33})) {
      const GpuWeight w_gpu(w, n);
      std::vector<float> bits;  // of the 64 tokens
      for (const int64_t m : sizes({64, 33, 17, 16, 15, 9, 8, 7, 3, 2, 1}, {64, 17, 9, 3})) {
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

// More row tiles than multiprocessors, several passes, uneven shares.
TEST(many_row_tiles) {
  if (no_gpu() || g_small) return;
  for (const int64_t n : {2112 + 1, 13 * 2112 + 5}) {
    const int64_t k = n < 10000 ? 1152 : 384;
    const HostWeight w(n, k, Values::kRandom, 3);
    const GpuWeight w_gpu(w, n);
    const HostActivations x(64, k, Values::kRandom, 4);
    const Expected want(x, w);
    Poisoned memory(static_cast<size_t>(64 * n * group_count(k)) * 4);
    for (const int64_t m : {64, 32, 16, 8}) {
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
  if (no_gpu()) return;
  const int64_t n = 40, k = 1100, groups = group_count(k);
  const HostWeight w(n, k, Values::kExtreme, 5);
  const GpuWeight w_gpu(w, n);
  HostActivations x(64, k, Values::kExtreme, 6);
  for (int64_t g = 0; g < groups; ++g) {  // token 1: zero groups, as the quantiser writes them
    x.scales[static_cast<size_t>(groups + g)] = 0.0f;
    std::fill_n(x.codes.begin() + static_cast<long>((groups + g) * 128), 128, int8_t{0});
  }
  const Expected want(x, w);
  Poisoned memory(static_cast<size_t>(64 * n * groups) * 4);
  for (const int64_t m : {8, 16, 32, 64}) {
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
      flexq_ft::cuda::copy(y.values, residual_gpu.data(), residual_gpu.bytes(), stream());
      y.residual = y.values;
    }
    stream_gemm(y, x.get(), w.get(), problem, config, plain());
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
  if (no_gpu()) return;
  const int64_t n = 100, k = 576;
  const HostWeight w(n, k, Values::kRandom, 7);
  const GpuWeight w_gpu(w, n);
  const HostActivations x(64, k, Values::kRandom, 8);
  Poisoned memory(64 * n * 4);
  for (const int64_t m : {5, 13, 31, 61}) {
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
  if (no_gpu()) return;
  const int64_t n = g_small ? 48 : 2112 + 16, k = g_small ? 1100 : 1536;
  std::vector<HostActivations> inputs;
  std::vector<HostWeight> weights;
  for (uint32_t i = 0; i < Chain::kInputs; ++i) inputs.emplace_back(64, k, Values::kRandom, 20 + i);
  for (uint32_t i = 0; i < 2; ++i) weights.emplace_back(n, k, Values::kRandom, 30 + i);
  for (const int64_t m : sizes({1, 8, 13, 32, 64}, {8, 64})) {
    Chain chain({m, n, k, 8}, inputs, weights);
    for (const StreamConfig& config : stream_configs(chain.problem, current_device())) {
      chain.outputs.poison();
      chain.put(config, plain(), 0);
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
        flexq_ft::cuda::synchronize(stream());
        chain.put(config, programmatic(), clocks);
        check("programmatic launches (group: link of the chain)");
      }
      chain.outputs.poison();
      flexq_ft::cuda::Graph graph;
      graph.capture(stream(), [&] { chain.put(config, programmatic(), 500); });
      graph.launch(stream());
      check("a graph of programmatic launches (group: link of the chain)");
    }
  }
}

TEST(repeated_runs_have_the_same_bits) {
  if (no_gpu()) return;
  const int64_t n = 576, k = 2048;
  const HostWeight w(n, k, Values::kRandom, 9);
  const GpuWeight w_gpu(w, n);
  const HostActivations x(64, k, Values::kRandom, 10);
  Poisoned memory(64 * n * 4);
  for (const int64_t m : {8, 64}) {
    const GemmProblem problem{m, n, k, 8};
    const GpuActivations x_gpu(x, m);
    for (const StreamConfig& config : stream_configs(problem, current_device())) {
      const std::vector<float> first = run(memory, x_gpu, w_gpu, problem, config);
      for (int i = 0; i < (g_small ? 2 : 100); ++i) {
        compare_bits(run(memory, x_gpu, w_gpu, problem, config), first, problem,
                     text(problem, config));
      }
    }
  }
}

TEST(configs_as_text) {
  Device device;
  device.major = 9;
  for (const int64_t m : {1, 9, 17, 64}) {
    std::set<std::string> seen;
    for (const StreamConfig& config : stream_configs({m, 16, 128, 6}, device)) {
      std::ostringstream out;
      out << config;
      const auto parsed = parse_stream_config(out.str());
      EXPECT(parsed && *parsed == config);
      EXPECT(seen.insert(out.str()).second);
    }
    EXPECT(seen.size() >= 3);
  }
  for (const char* wrong : {"", "kernel=bulk", "kernel=bulk tiles=6 split=1 stages=8 limit=4 ",
                            "kernel=bulb tiles=6 split=1 stages=8 limit=4",
                            "kernel=bulk tiles=06 split=1 stages=8 limit=4"}) {
    EXPECT(!parse_stream_config(wrong));
  }
}

TEST(what_is_not_taken) {
  Device device;
  device.major = 8;
  EXPECT_EQ(stream_why_not({64, 7, 100, 6}, device), "");
  EXPECT(stream_why_not({65, 7, 100, 6}, device).find("up to 64 tokens") != std::string::npos);
  EXPECT(stream_why_not({1, 7, 100, 16}, device).find("6- and 8-bit") != std::string::npos);
  EXPECT(stream_configs({65, 7, 100, 6}, device).empty());
  for (const StreamConfig& config : stream_configs({8, 7, 100, 6}, device)) {
    EXPECT(config.kernel == StreamKernel::kAsync);
  }
  device.major = 7;
  EXPECT(stream_why_not({1, 7, 100, 6}, device).find("8.0, not 7.0") != std::string::npos);
  if (no_gpu()) return;
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
    stream_gemm(y, a, w_gpu.get(), p, c, plain());
  };
  Activations a = x_gpu.get();
  a.order = CodeOrder::kNatural;
  EXPECT_THROW(launch(a, problem, config), std::invalid_argument, "kFragment");
  a = x_gpu.get();
  a.scale_stride = 3;
  EXPECT_THROW(launch(a, problem, config), std::invalid_argument, "stride 3");
  EXPECT_THROW(launch(x_gpu.get(), {65, 16, 128, 6}, config), std::invalid_argument, "m=65");
  StreamConfig other = config;
  other.tiles = 5;
  EXPECT_THROW(launch(x_gpu.get(), problem, other), std::invalid_argument, "tiles=5");
  other = config;
  other.stages = 40;
  EXPECT_THROW(launch(x_gpu.get(), problem, other), std::invalid_argument, "stages=40");
  other = config;
  other.limit = 1;
  EXPECT_THROW(launch(x_gpu.get(), problem, other), std::invalid_argument, "limit=1");
  launch(x_gpu.get(), {0, 16, 128, 6}, config);  // nothing to do
}
