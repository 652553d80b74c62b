// Every W6Ax kernel of the GPU at small sizes that fit no block, against the CPU, and at the sizes
// of FlexQ's kernel figure, against the plain kernel. --small: fewer, for compute-sanitizer.
#include "flexq_kernels/gpu/plain_gemm.h"
#include "tests/cpp/w6ax_check.h"

using namespace flexq_test;
namespace gpu = flexq_kernels::gpu;

namespace {

constexpr FloatType kTypes[] = {FloatType::kFp32, FloatType::kFp16, FloatType::kBf16};

// Most of the time passes on the host: gigabytes of sums are compared there.
bool skip() {
  if (nothing_to_test()) return true;
  end_after(small() ? 900 : 300);
  return false;
}

// want: [m, n, groups].
void check_all(const std::vector<Implementation>& kernels, const WeightCase& w, const InputCase& x,
               const std::vector<int32_t>& want, uint64_t seed) {
  OutputCase y(x.m, w.n, kTypes[seed % 3], seed % 2 == 0, seed % 5 < 2, seed);
  for (const Implementation& kernel : kernels) {
    if (!kernel.why_not({x.m, w.n, w.k, x.act_bits}, gpu::current_device()).empty()) continue;
    check_product(kernel, kernel.order, w, x, y, want);
  }
}

std::vector<int32_t> plain_sums(const WeightCase& w, const InputCase& x) {
  const DeviceArray<int32_t> sums(x.m * w.n * w.groups);
  gpu::plain_group_sums(sums.data(), x.gpu(gpu::CodeOrder::kNatural), w.gpu(),
                        {x.m, w.n, w.k, x.act_bits}, plain_launch());
  return sums.fetch("sums of the plain kernel");
}

}  // namespace

TEST(small_sizes) {
  if (skip()) return;
  std::vector<Implementation> kernels = implementations();
  kernels.push_back(plain_implementation());
  const std::vector<int64_t> tokens =
      small() ? std::vector<int64_t>{1, 9, 33}
              : std::vector<int64_t>{1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 65, 129, 513};
  uint64_t seed = 0;
  for (const int64_t n : {1, 15, 16, 17, 100, 576}) {
    for (const int64_t k : {64, 128, 192, 576, 1000, 4096}) {
      if (small() && n * k > 20000) continue;
      const WeightCase w(n, k, Values::kRandom, static_cast<uint64_t>(n + k));
      for (const int64_t m : tokens) {
        ++seed;
        const InputCase x(m, k, seed % 2 == 0 ? 8 : 6, Values::kRandom, seed);
        check_all(kernels, w, x, cpu_sums(w, x), seed);
      }
    }
  }
}

// 513 tokens of the smallest model only: the sums of the largest are 4 GB.
TEST(sizes_of_the_paper) {
  if (skip() || small()) return;
  constexpr int64_t kHiddenInter[][2] = {
      {4096, 11008}, {6656, 17920}, {5120, 13824}, {8192, 28672}, {7168, 28672}};
  uint64_t seed = 0;
  for (const auto& [hidden, inter] : kHiddenInter) {
    const int64_t sizes[][2] = {
        {3 * hidden, hidden}, {hidden, hidden}, {inter, hidden}, {hidden, inter}};
    for (const auto& [n, k] : sizes) {
      const WeightCase w(n, k, Values::kRandom, ++seed);
      for (const int64_t m : {1, 8, 16, 513}) {
        if (m > 16 && hidden > 4096) continue;
        const InputCase x(m, k, k == inter ? 8 : 6, Values::kRandom, ++seed);
        check_all(implementations(), w, x, plain_sums(w, x), seed);
      }
    }
  }
}
