// W6Ax GEMM of many tokens: every config of the wgmma and mma families against group sums of the
// CPU, to the last bit. `--small`: a few problems only, for compute-sanitizer. `--only TEXT`: only
// instances whose name has it, as in "rows=128 tokens=192 cluster=2".
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/mma_gemm.h"
#include "flexq_kernels/gpu/wgmma_gemm.h"
#include "flexq_kernels/gpu/wgmma_gemm_schedule.h"
#include "ft/core/cuda.h"
#include "tests/cpp/check.h"
#include "tests/cpp/prefill_operands.h"

using flexq_ft::BFloat16;
using flexq_ft::Half;
using flexq_kernels::FloatType;
using flexq_kernels::GemmProblem;
using flexq_test::Memory;
using flexq_test::Operands;
using flexq_test::stream;
using flexq_test::Values;
namespace gpu = flexq_kernels::gpu;

namespace {

constexpr unsigned kSeconds = 60;  // then something hangs
bool g_small = false;
std::string g_only;
std::string g_running;  // the launch under way

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

bool no_gpu() {
  if (flexq_ft::cuda::built() && flexq_ft::cuda::device_count() > 0) return false;
  std::printf("skipped: no GPU\n");
  return true;
}

// ---- One family ----

template <typename Config>
struct Family {
  const char* name;
  std::string (*why_not)(const GemmProblem&, const gpu::Device&);
  std::vector<Config> (*configs)(const GemmProblem&, const gpu::Device&);
  void (*gemm)(const gpu::Output&, const gpu::Activations&, const gpu::Weight&, const GemmProblem&,
               const Config&, const gpu::Launch&);
  void (*group_sums)(int32_t*, const gpu::Activations&, const gpu::Weight&, const GemmProblem&,
                     const Config&, const gpu::Launch&);
};

void wgmma_gemm(const gpu::Output& y, const gpu::Activations& x, const gpu::Weight& w,
                const GemmProblem& problem, const gpu::WgmmaConfig& config,
                const gpu::Launch& how) {
  static Memory* const workspace = [] {
    const std::vector<uint8_t> zeros(gpu::wgmma_workspace_bytes(gpu::current_device()));
    return new Memory(zeros);
  }();
  gpu::wgmma_gemm(y, x, w, problem, config, workspace->at(), how);
}

constexpr Family<gpu::WgmmaConfig> kWgmma = {"wgmma", gpu::wgmma_why_not, gpu::wgmma_configs,
                                             wgmma_gemm, gpu::wgmma_group_sums};

constexpr Family<gpu::MmaConfig> kMma = {"mma", gpu::mma_why_not, gpu::mma_configs, gpu::mma_gemm,
                                         gpu::mma_group_sums};

template <typename T>
T round_to(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return flexq_ft::from_float<T>(value);
  }
}
template <typename T>
float widen(T value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return flexq_ft::to_float(value);
  }
}

template <typename Config>
std::string name_of(const Family<Config>& family, const Config& config) {
  std::ostringstream out;
  out << family.name << " " << config;
  return out.str();
}

// Of K, whose sums are added.
int slices_of(const gpu::WgmmaConfig& config) { return config.sliced ? config.cluster : 1; }
int slices_of(const gpu::MmaConfig&) { return 1; }

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

template <typename Config>
std::string label(const char* what, const Family<Config>& family, const GemmProblem& p,
                  const Config& c) {
  std::ostringstream out;
  out << what << " " << name_of(family, c) << " of " << p;
  return out.str();
}

// Launches and waits. After an error of CUDA nothing more can be learnt: it ends the process.
template <typename Run>
void launch(const std::string& run, const Run& start) {
  try {
    g_running = run;
    start();
    flexq_ft::cuda::synchronize(stream());
    g_running.clear();
  } catch (const std::exception& error) {
    std::printf("FAIL: %s: %s\n", run.c_str(), error.what());
    std::fflush(stdout);
    _exit(2);
  }
}

// One failure per run, with where the first difference is and how many there are.
template <typename Same>
void compare(const std::string& run, bool guards, int64_t rows, int64_t n, Same same) {
  int64_t wrong = 0, first = -1;
  for (int64_t i = 0; i < rows * n; ++i) {
    if (same(i, nullptr)) continue;
    if (first < 0) first = i;
    ++wrong;
  }
  if (!guards) flexq_test::report_failure(__FILE__, __LINE__, run + ": guard bands written to");
  if (wrong == 0) return;
  std::string values;
  same(first, &values);
  std::ostringstream out;
  out << run << ": " << wrong << " of " << rows * n << " wrong, first (token " << first / n
      << ", row " << first % n << "): " << values;
  flexq_test::report_failure(__FILE__, __LINE__, out.str());
}

template <typename T, typename Config>
void check_values(const Family<Config>& family, Operands& o, const GemmProblem& p,
                  const Config& config, FloatType type, bool bias, bool residual, bool in_place,
                  bool programmatic) {
  const auto count = static_cast<size_t>(p.m * p.n);
  std::vector<T> added;
  for (size_t i = 0; i < count; ++i) added.push_back(round_to<T>(o.residual[i]));
  Memory y(count * sizeof(T)), r(added);
  if (residual && in_place) {
    flexq_ft::cuda::copy(y.at(), added.data(), count * sizeof(T), stream());
  }
  gpu::Output out;
  out.values = y.at();
  out.type = type;
  out.bias = bias ? o.bias_memory.as<float>() : nullptr;
  out.residual = !residual ? nullptr : in_place ? y.at() : r.at();
  std::ostringstream what;
  what << (type == FloatType::kFp32   ? "fp32"
           : type == FloatType::kFp16 ? "fp16"
                                      : "bf16")
       << (bias ? " +bias" : "") << (residual ? " +residual" : "");
  const std::string run = label(what.str().c_str(), family, p, config);
  launch(run, [&] {
    family.gemm(out, o.activations(), o.weight(), p, config, {stream().handle, programmatic});
  });
  std::vector<unsigned char> bytes;
  const bool guards = y.fetch(bytes);
  const std::vector<float>& product = o.product(slices_of(config));
  const T* got = reinterpret_cast<const T*>(bytes.data());
  compare(run, guards, p.m, p.n, [&](int64_t at, std::string* values) {
    const auto i = static_cast<size_t>(at);
    float want = product[i];
    if (bias) want += o.bias[i % static_cast<size_t>(p.n)];
    T rounded = round_to<T>(want);
    if (residual) rounded = round_to<T>(widen(rounded) + widen(added[i]));
    const float a = widen(got[i]), b = widen(rounded);
    if (values != nullptr) {
      std::ostringstream text;
      text.precision(9);
      text << a << ", should be " << b;
      *values = text.str();
    }
    return std::memcmp(&got[i], &rounded, sizeof(T)) == 0 || (std::isnan(a) && std::isnan(b));
  });
}

template <typename Config>
void check_sums(const Family<Config>& family, Operands& o, const GemmProblem& p,
                const Config& config) {
  const int64_t count = p.m * p.n * o.groups;
  Memory sums(static_cast<size_t>(count) * 4);
  const std::string run = label("group sums", family, p, config);
  launch(run, [&] {
    family.group_sums(sums.as<int32_t>(), o.activations(), o.weight(), p, config,
                      {stream().handle, false});
  });
  std::vector<unsigned char> bytes;
  const bool guards = sums.fetch(bytes);
  const int32_t* got = reinterpret_cast<const int32_t*>(bytes.data());
  compare(run, guards, p.m, p.n * o.groups, [&](int64_t at, std::string* values) {
    const auto i = static_cast<size_t>(at);
    if (values != nullptr) {
      std::ostringstream text;
      text << "group " << at % o.groups << " of row " << at / o.groups % p.n << ": " << got[i]
           << ", should be " << o.sums[i];
      *values = text.str();
    }
    return got[i] == o.sums[i];
  });
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
        flexq_test::report_failure(__FILE__, __LINE__, label("repeats of", family, p, config));
        break;
      }
    }
  }
}

// Whatever the GPU: what each family says of one that it is not for.
template <typename Config>
void check_refusals(const Family<Config>& family, int least,
                    std::optional<Config> (*parsed)(const std::string&)) {
  const GemmProblem good{512, 4096, 4096, 8};
  gpu::Device device;
  device.major = 9;
  device.multiprocessors = 132;
  device.shared_per_block = 227 * 1024;
  device.shared_per_multiprocessor = 228 * 1024;
  EXPECT_EQ(family.why_not(good, device), "");
  EXPECT(!family.configs(good, device).empty());
  for (const Config& config : family.configs(good, device)) {
    std::ostringstream text;
    text << config;
    const auto again = parsed(text.str());
    EXPECT(again.has_value() && *again == config);
  }
  EXPECT(!parsed("tokens=100").has_value());
  gpu::Device older = device;
  older.major = (least - 1) / 10;
  older.minor = (least - 1) % 10;
  EXPECT(family.why_not(good, older).find("capability") != std::string::npos);
  EXPECT(family.configs(good, older).empty());
  GemmProblem floats = good;
  floats.act_bits = 16;
  EXPECT(family.why_not(floats, device).find("16") != std::string::npos);
  if (no_gpu() || !family.why_not(good, gpu::current_device()).empty()) return;
  Operands o(33, 16, 128, 8, Values::kRandom);
  gpu::Activations fragments = o.activations();
  fragments.order = gpu::CodeOrder::kFragment;
  const GemmProblem p{33, 16, 128, 8};
  Memory y(33 * 16 * 4);
  EXPECT_THROW(family.gemm({y.at(), FloatType::kFp32}, fragments, o.weight(), p,
                           family.configs(p, gpu::current_device())[0], {stream().handle, false}),
               std::invalid_argument, "natural");
}

}  // namespace

TEST(awkward_sizes) {
  if (no_gpu()) return;
  const std::vector<int64_t> tokens = {1, 17, 33, 64, 65, 129, 513};
  size_t turn = 0;
  for (const int64_t k : g_small ? std::vector<int64_t>{192, 576}
                                 : std::vector<int64_t>{64, 128, 192, 576, 1000, 4096}) {
    for (const int64_t n :
         g_small ? std::vector<int64_t>{17, 100} : std::vector<int64_t>{1, 15, 16, 17, 100, 576}) {
      const bool large = !g_small && (n == 17 || n == 576);
      Operands o(large ? 513 : 129, n, k, turn % 2 ? 6 : 8, Values::kRandom,
                 static_cast<uint32_t>(turn + 1));
      // Strides of scales and sums are those of o.m: fewer tokens are its first ones.
      for (size_t i = turn++ % 2; i < tokens.size(); i += 2) {
        if (tokens[i] < o.m) check_families(o, tokens[i]);
      }
      check_families(o, o.m);
    }
  }
}

// More tiles than multiprocessors, so that a block goes on with others.
TEST(many_tiles) {
  if (no_gpu() || g_small) return;
  Operands wide(1100, 4112, 384, 8, Values::kRandom);
  check_families(wide, 1100, false);
  check_repeats(kWgmma, wide, 5);
  Operands tall(4500, 264, 256, 6, Values::kRandom);
  check_families(tall, 4500, false);
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
}

TEST(what_is_not_taken) {
  check_refusals(kWgmma, 90, gpu::parse_wgmma_config);
  check_refusals(kMma, 80, gpu::parse_mma_config);
}

// Once each, a cut tile's first groups before all else and its last ones after all else, and no
// cluster more than a group longer than another where tiles are cut.
TEST(a_schedule_covers_all_groups) {
  for (const int clusters : {1, 3, 66, 132}) {
    for (const int tiles : {1, clusters, clusters + 1, 2 * clusters - 1, 5 * clusters + 2}) {
      for (const int groups : {1, 2, 41}) {
        gpu::WgmmaSchedule schedule{tiles, 0, std::min(tiles, clusters), groups};
        const int rest = tiles % schedule.clusters;
        if (rest > 0) schedule.split = schedule.clusters + rest;
        std::vector<int> times(static_cast<size_t>(tiles * groups));
        int least = 1 << 30, most = 0;
        for (int c = 0; c < schedule.clusters; ++c) {
          const auto work = schedule.of(c);
          int steps = 0;
          for (int i = 0; i < work.parts(); ++i) {
            const gpu::WgmmaPart part = work.part(i);
            for (int g = part.first; g < part.last; ++g) {
              ++times.at(static_cast<size_t>(part.tile * groups + g));
            }
            steps += part.last - part.first;
            EXPECT(part.last == groups || i == 0);
            EXPECT(part.first == 0 || i == work.parts() - 1);
            if (part.first > 0) {
              const gpu::WgmmaPart front = schedule.of(c - 1).part(0);
              EXPECT(front.tile == part.tile && front.first == 0 && front.last == part.first);
            }
          }
          EXPECT_EQ(steps, work.steps());
          least = std::min(least, steps);
          most = std::max(most, steps);
        }
        EXPECT(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; }));
        EXPECT(schedule.split == 0 || most - least <= 1);
      }
    }
  }
}

TEST(mma_configs_fit_small_gpus) {
  gpu::Device ada;
  ada.major = 8;
  ada.minor = 9;
  ada.multiprocessors = 128;
  ada.shared_per_block = 99 * 1024;
  ada.shared_per_multiprocessor = 100 * 1024;
  EXPECT_EQ(gpu::mma_configs({512, 4096, 4096, 8}, ada).size(), size_t{3});
}
