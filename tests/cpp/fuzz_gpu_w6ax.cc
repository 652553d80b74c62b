// Random problems for every W6Ax kernel of the GPU, against the plain one, and the plain one
// against the CPU on each eighth. Each problem follows from its seed alone.
//
//   fuzz_gpu_w6ax [--problems N] [--first SEED] [--seconds S]     seeds SEED … SEED + N - 1
//   fuzz_gpu_w6ax --seed SEED                                     one problem, and what it is
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "tests/cpp/w6ax_case.h"
#include "tests/cpp/w6ax_implementations.h"

using namespace flexq_test;
namespace gpu = flexq_kernels::gpu;

namespace flexq_test {

// The arrays report what was written beyond their ends here.
static int g_failures = 0;
void report_failure(const char*, int, const std::string& text) {
  ++g_failures;
  std::printf("MISMATCH %s\n", text.c_str());
}

}  // namespace flexq_test

namespace {

constexpr double kMostLog = 24;  // of m * n * k, n and k padded to whole tiles

struct Spec {
  GemmProblem problem;
  FloatType type = FloatType::kFp32;
  bool bias = false;
  bool residual = false;
  Values values = Values::kRandom;
};

// Extents are log-uniform: log2 of the whole first, then its parts.
Spec spec_of(uint64_t seed) {
  Random random(seed);
  const double whole = kMostLog * std::sqrt(random.unit());
  double parts[3] = {random.unit(), random.unit(), random.unit()};
  const double sum = parts[0] + parts[1] + parts[2] + 1e-6;
  for (double& part : parts) part = std::exp2(whole * part / sum);
  Spec spec;
  spec.problem = {std::max<int64_t>(1, std::lround(parts[0])),
                  std::max<int64_t>(1, std::lround(parts[1])),
                  std::max<int64_t>(1, std::lround(parts[2])), random.below(2) == 0 ? 6 : 8};
  // Half of the problems are whole groups and tiles, as in models.
  if (random.below(2) == 0) {
    spec.problem.n = flexq_kernels::row_tiles(spec.problem.n) * kTileRows;
    spec.problem.k = flexq_kernels::group_count(spec.problem.k) * kGroupSize;
  }
  const int64_t padded = flexq_kernels::row_tiles(spec.problem.n) * kTileRows *
                         flexq_kernels::group_count(spec.problem.k) * kGroupSize;
  spec.problem.m = std::min(spec.problem.m, std::max<int64_t>(1, (int64_t{1} << 24) / padded));
  spec.type = static_cast<FloatType>(random.below(3));
  spec.bias = random.below(2) == 0;
  spec.residual = random.below(2) == 0;
  const int values = random.below(8);
  spec.values = values == 0   ? Values::kExtremes
                : values == 1 ? Values::kLeast
                : values < 4  ? Values::kSpecial
                              : Values::kRandom;
  return spec;
}

std::string text(uint64_t seed, const Spec& spec) {
  std::ostringstream out;
  out << "seed " << seed << " " << spec.problem << " " << name_of(spec.type)
      << (spec.bias ? " bias" : "") << (spec.residual ? " residual" : "") << " values "
      << static_cast<int>(spec.values);
  return out.str();
}

class Fuzzer {
 public:
  Fuzzer() : kernels_(implementations()) {}

  // True if all is right.
  bool run(uint64_t seed, bool with_cpu) {
    const Spec spec = spec_of(seed);
    const GemmProblem& p = spec.problem;
    const int before = g_failures;
    std::string now = "plain";
    try {
      const WeightCase w(p.n, p.k, spec.values, seed);
      const InputCase x(p.m, p.k, p.act_bits, spec.values, seed);
      OutputCase y(p.m, p.n, spec.type, spec.bias, spec.residual, seed);
      DeviceArray<int32_t> sums(p.m * p.n * w.groups);
      const Implementation plain = plain_implementation();
      plain.group_sums(sums.data(), x.gpu(plain.order), w.gpu(), p, plain_launch());
      const std::vector<int32_t> want = sums.fetch("group sums of plain");
      if (with_cpu) {
        expect(compare_sums(want, cpu_sums(w, x), p.n, w.groups), now);
        plain.gemm(y.gpu(), x.gpu(plain.order), w.gpu(), p, plain_launch());
        expect(compare_outputs(y.values.fetch("outputs of plain"), w, x, y, want, true), now);
      }
      for (const Implementation& kernel : kernels_) {
        now = kernel.name;
        if (!kernel.why_not(p, gpu::current_device()).empty()) continue;
        ++taken_[kernel.name];
        sums.poison();
        kernel.group_sums(sums.data(), x.gpu(kernel.order), w.gpu(), p, plain_launch());
        expect(compare_sums(sums.fetch("group sums"), want, p.n, w.groups), now);
        y.values.poison();
        kernel.gemm(y.gpu(), x.gpu(kernel.order), w.gpu(), p, dependent_launch());
        expect(compare_outputs(y.values.fetch("outputs"), w, x, y, want, false), now);
      }
    } catch (const std::exception& error) {  // after a fault of the device nothing works any more
      expect(error.what(), now);
      dead_ = cudaStreamSynchronize(stream()) != cudaSuccess;
    }
    if (g_failures > before) std::printf("         %s\n", text(seed, spec).c_str());
    return g_failures == before;
  }

  bool dead() const { return dead_; }
  void report() const {
    for (const auto& [name, count] : taken_)
      std::printf("%s took %d problems\n", name.c_str(), count);
  }

 private:
  static void expect(const std::string& difference, const std::string& kernel) {
    if (!difference.empty()) report_failure(__FILE__, __LINE__, kernel + ": " + difference);
  }

  std::vector<Implementation> kernels_;
  std::map<std::string, int> taken_;
  bool dead_ = false;
};

int fuzz(uint64_t first, uint64_t problems, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  Fuzzer fuzzer;
  uint64_t run = 0, wrong = 0;
  double elapsed = 0;
  for (; run < problems && elapsed < seconds && !fuzzer.dead(); ++run) {
    if (!fuzzer.run(first + run, run % 8 == 0)) ++wrong;
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  fuzzer.report();
  std::printf("%llu of %llu problems in %.1f s, %llu wrong\n", static_cast<unsigned long long>(run),
              static_cast<unsigned long long>(problems), elapsed,
              static_cast<unsigned long long>(wrong));
  return wrong == 0 && run == problems ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  const auto number = [&](const char* name, uint64_t otherwise) {
    return options.count(name) ? std::strtoull(options[name].c_str(), nullptr, 10) : otherwise;
  };
  if (no_gpu()) return 0;
  const uint64_t seconds = number("--seconds", 170);
  end_after(static_cast<unsigned>(seconds) + 20);
  if (!options.count("--seed")) {
    return fuzz(number("--first", 1), number("--problems", 10000), static_cast<double>(seconds));
  }
  const uint64_t seed = number("--seed", 1);
  std::printf("%s\n", text(seed, spec_of(seed)).c_str());
  return Fuzzer().run(seed, true) ? 0 : 1;
}
