// W6Ax GEMM of many tokens: every config of the wgmma and mma families against group sums of the
// CPU, to the last bit. `--small`: a few problems only, for compute-sanitizer. `--only TEXT`: only
// instances whose name has it, as in "rows=128 tokens=192 cluster=2".
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/cpp/prefill_gate_check.h"

using namespace flexq_test;

namespace {

constexpr unsigned kSeconds = 120;  // then something hangs
bool g_small = false;
std::string g_only;

void out_of_time(int) {
  constexpr char kText[] = "FAIL: out of time, a kernel hangs or the machine is slow: ";
  if (write(1, kText, sizeof(kText) - 1) < 0) _exit(4);
  if (write(1, g_running.data(), g_running.size()) < 0 || write(1, "\n", 1) < 0) _exit(4);
  _exit(3);
}

// Before main, which is that of all tests and takes no arguments.
__attribute__((constructor)) void start(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    g_small = g_small || argument == "--small";
    if (argument == "--only" && i + 1 < argc) g_only = argv[i + 1];
  }
  setvbuf(stdout, nullptr, _IOLBF, 0);
  signal(SIGALRM, out_of_time);
  if (!g_small) alarm(kSeconds);
}

// The configs that --only leaves, those of single blocks before clusters.
template <typename Config>
std::vector<Config> configs_of(const Family<Config>& family, const GemmProblem& p) {
  std::vector<Config> out;
  for (const char* turn : {"", "cluster=2"}) {
    for (const Config& config : family.configs(p, gpu::current_device())) {
      const std::string name = name_of(family, config);
      const bool later = name.find("cluster=2") != std::string::npos;
      if (later == (*turn != 0) && name.find(g_only) != std::string::npos) out.push_back(config);
    }
  }
  return out;
}

// Every config: group sums, and values with another type, bias and residual each time.
template <typename Config>
void check_family(const Family<Config>& family, Operands& o, int64_t m, bool with_sums = true) {
  const GemmProblem p{m, o.n, o.k, 8};
  if (!family.why_not(p, gpu::current_device()).empty()) return;
  static unsigned turn = 0;
  for (const Config& config : configs_of(family, p)) {
    if (with_sums) check_sums(family, o, p, config);
    const bool bias = turn / 3 % 2, residual = turn / 2 % 2, in_place = turn % 4 == 3;
    const bool programmatic = turn % 2;
    const auto run = [&](auto tag, FloatType type) {
      check_values<decltype(tag)>(family, o, p, config, type, bias, residual, in_place,
                                  programmatic);
    };
    if (turn % 3 == 0) run(float{}, FloatType::kFp32);
    if (turn % 3 == 1) run(Half{}, FloatType::kFp16);
    if (turn % 3 == 2) run(BFloat16{}, FloatType::kBf16);
    ++turn;
  }
}

void check_families(Operands& o, int64_t m, bool with_sums = true) {
  check_family(kWgmma, o, m, with_sums);
  check_family(kMma, o, m, with_sums);
}

// Every config that takes gates: another type, activation and bias each time.
void check_gates(Operands& o, int64_t m) {
  const GemmProblem p{m, o.n, o.k, 8};
  if (!kWgmma.why_not(p, gpu::current_device()).empty()) return;
  static unsigned turn = 0;
  for (const gpu::WgmmaConfig& config : configs_of(kWgmma, p)) {
    if (!gpu::wgmma_takes_gate(config)) continue;
    const GateKind& gate = kGates[turn / 3 % 3];
    const bool bias = turn / 2 % 2, programmatic = turn / 4 % 2;
    const auto run = [&](auto tag, FloatType type) {
      check_gated<decltype(tag)>(kWgmma, o, p, config, type, gate, bias, programmatic);
    };
    if (turn % 3 == 0) run(float{}, FloatType::kFp32);
    if (turn % 3 == 1) run(Half{}, FloatType::kFp16);
    if (turn % 3 == 2) run(BFloat16{}, FloatType::kBf16);
    ++turn;
  }
}

template <typename Config>
void check_repeats(const Family<Config>& family, Operands& o, int times) {
  const GemmProblem p{o.m, o.n, o.k, 8};
  if (!family.why_not(p, gpu::current_device()).empty()) return;
  for (const Config& config : configs_of(family, p)) {
    std::vector<unsigned char> first, again;
    Memory y(static_cast<size_t>(p.m * p.n) * 4);
    for (int i = 0; i < (g_small ? 2 : times); ++i) {
      y.poison();
      launch(label("repeats of", family, p, config), [&] {
        family.gemm({y.at(), FloatType::kFp32}, o.activations(), o.weight(), p, config,
                    {stream().handle, i % 2 == 1});
      });
      EXPECT(y.fetch(i == 0 ? first : again));
      if (i > 0 && first != again) {
        report_failure(__FILE__, __LINE__, label("repeats of", family, p, config));
        break;
      }
    }
  }
}

}  // namespace

// Of every second number of tokens, and of the others with the next n and the next k.
TEST(awkward_sizes) {
  if (no_gpu()) return;
  const std::vector<int64_t> tokens = {1, 17, 33, 64, 65, 128, 129, 192, 193, 250, 256, 513};
  uint32_t turn = 0;
  for (const int64_t k : g_small ? std::vector<int64_t>{192, 576}
                                 : std::vector<int64_t>{64, 128, 192, 576, 1000, 4096}) {
    for (const int64_t n :
         g_small ? std::vector<int64_t>{17, 100} : std::vector<int64_t>{1, 15, 16, 17, 576, 100}) {
      const bool large = !g_small && (n == 17 || n == 576);
      Operands o(large ? 513 : 129, n, k, turn % 2 ? 6 : 8, Values::kRandom, turn + 1);
      // Strides of scales and sums are those of o.m: fewer tokens are its first ones.
      for (size_t i = turn++ % 2; i < tokens.size(); i += 2) {
        if (tokens[i] < o.m) check_families(o, tokens[i]);
      }
      check_families(o, o.m);
    }
    ++turn;
  }
}

// More tiles than multiprocessors, so that a block goes on with others.
TEST(many_tiles) {
  if (no_gpu() || g_small) return;
  Operands wide(1100, 4112, 384, 8, Values::kRandom);
  check_families(wide, 1100, false);
  check_repeats(kWgmma, wide, 5);
  for (const int64_t m : {130, 300, 1100}) check_gates(wide, m);
  Operands tall(4500, 264, 256, 6, Values::kRandom);
  check_families(tall, 4500, false);
  Operands few(130, 12304, 384, 8, Values::kRandom);
  check_families(few, 100, false);
  check_families(few, 130, false);
}

TEST(extreme_values) {
  if (no_gpu()) return;
  Operands o(70, 40, 384, 8, Values::kExtreme);
  check_families(o, 70);
}

TEST(nan_and_zero_scales) {
  if (no_gpu()) return;
  Operands o(70, 40, 384, 6, Values::kNan);
  for (int i = 0; i < 3; ++i) check_families(o, 70);
}

// Channels, of which there are half as many as rows, that are 8 mod 16 and not; tiles past the end.
TEST(gates_of_awkward_sizes) {
  if (no_gpu()) return;
  const std::vector<int64_t> tokens = {1, 33, 64, 65, 127, 129, 200, 256, 300};
  size_t turn = 0;
  for (const int64_t k : g_small ? std::vector<int64_t>{192} : std::vector<int64_t>{64, 1000}) {
    for (const int64_t n :
         g_small ? std::vector<int64_t>{16, 48} : std::vector<int64_t>{16, 48, 208, 576}) {
      Operands o(300, n, k, turn % 2 ? 6 : 8, Values::kRandom, static_cast<uint32_t>(turn + 1));
      for (size_t i = turn++ % 2; i < tokens.size(); i += 2) check_gates(o, tokens[i]);
    }
  }
}

TEST(gates_of_extreme_values) {
  if (no_gpu()) return;
  for (const Values kind : {Values::kExtreme, Values::kNan}) {
    Operands o(70, 48, 384, 8, kind);
    for (int i = 0; i < 3; ++i) check_gates(o, 70);
  }
}

// Families may make an infinite scale's outputs NaN, but none finite, and no others.
TEST(infinite_scales) {
  if (no_gpu()) return;
  Operands o(70, 40, 384, 6, Values::kInfinite);
  for (int i = 0; i < 3; ++i) check_families(o, 70);
}

// The CPU twin rounds each product of two scales instead of fusing it: near, not equal.
TEST(the_expected_sums_are_those_of_the_cpu_twin) {
  const int64_t m = 40, n = 48;
  if (no_gpu()) return;
  Operands o(m, n, 1000, 8, Values::kRandom);
  std::vector<uint16_t> scales(static_cast<size_t>(n * o.groups));
  for (int64_t i = 0; i < n * o.groups; ++i) {
    const Half half = flexq_ft::from_float<Half>(o.row_scales[static_cast<size_t>(i)]);
    std::memcpy(&scales[static_cast<size_t>(i % o.groups * n + i / o.groups)], &half, 2);
  }
  const std::vector<float>& product = o.product();
  std::vector<float> twin(product.size());
  flexq_kernels::gemm_w6ax(twin.data(), {o.host_codes.data(), o.token_scales.data()},
                           {o.host_packed.data(), scales.data()}, nullptr, {m, n, o.k, 8});
  float largest = 0, worst = 0;
  for (size_t i = 0; i < twin.size(); ++i) {
    largest = std::max(largest, std::fabs(twin[i]));
    worst = std::max(worst, std::fabs(twin[i] - product[i]));
  }
  EXPECT(worst <= 1e-5f * largest);
}

TEST(repeats_are_bit_equal) {
  if (no_gpu()) return;
  Operands o(513, 576, 1000, 8, Values::kRandom);
  check_repeats(kWgmma, o, 20);
  check_repeats(kMma, o, 20);
  for (const int64_t m : {64, 128, 250}) {  // of clusters that cut K
    Operands few(m, 576, 1000, 6, Values::kRandom);
    check_repeats(kWgmma, few, 20);
  }
}
