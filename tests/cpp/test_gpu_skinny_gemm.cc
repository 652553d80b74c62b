// Every instance of the skinny product once, on small problems; meant for compute-sanitizer too.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/skinny_gemm.h"
#include "tests/cpp/check.h"

using flexq_ft::BFloat16;
using flexq_ft::Buffer;
using flexq_ft::DataType;
using flexq_ft::Device;
using flexq_ft::GemmProblem;
using flexq_ft::Half;
using flexq_ft::MemoryKind;
using flexq_ft::Scheme;
using flexq_ft::Shape;
using flexq_ft::Tensor;
using flexq_ft::gpu::skinny_chunk_start;
using flexq_ft::gpu::SkinnyConfig;

namespace {

constexpr size_t kGuard = 4096;  // bytes around each output that must stay as they are

bool no_gpu() {
  if (flexq_ft::cuda::built() && flexq_ft::cuda::device_count() > 0) return false;
  std::printf("skipped: no GPU\n");
  return true;
}

uint32_t next(uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 8; }

// Values of a matrix as floats, and their bytes in its type.
struct Matrix {
  std::vector<float> values;
  std::vector<unsigned char> bytes;

  Matrix(DataType dtype, int64_t rows, int64_t columns, uint32_t seed) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      const auto integer = static_cast<int>(next(seed) % 255) - 127;
      const float value = static_cast<float>(integer) * (dtype == DataType::kInt8 ? 1.0f : 0.01f);
      if (dtype == DataType::kInt8) {
        append(static_cast<int8_t>(integer), value);
      } else if (dtype == DataType::kFp16) {
        const Half half = flexq_ft::from_float<Half>(value);
        append(half, flexq_ft::to_float(half));
      } else {
        const BFloat16 bf16 = flexq_ft::from_float<BFloat16>(value);
        append(bf16, flexq_ft::to_float(bf16));
      }
    }
  }

  template <typename T>
  void append(T stored, float value) {
    values.push_back(value);
    const auto* p = reinterpret_cast<const unsigned char*>(&stored);
    bytes.insert(bytes.end(), p, p + sizeof(T));
  }
};

Buffer on_gpu(const std::vector<unsigned char>& bytes, DataType dtype, Shape shape) {
  Buffer buffer(dtype, shape, MemoryKind::kWorkspace, Device::kCuda);
  flexq_ft::cuda::copy(buffer.data(), bytes.data(), bytes.size(), {});
  return buffer;
}

// Runs one config twice and compares with a product in double.
void check(const GemmProblem& p, const SkinnyConfig& config, const Matrix& x, const Buffer& x_gpu,
           const Matrix& w, const Buffer& w_gpu) {
  const bool integer = p.scheme == Scheme::kW8A8;
  const size_t count = static_cast<size_t>(p.m * p.n), bytes = 4 * count;
  Buffer memory(bytes + 2 * kGuard, MemoryKind::kWorkspace, Device::kCuda);
  Tensor y(static_cast<char*>(memory.data()) + kGuard, integer ? DataType::kInt32 : DataType::kFp32,
           Shape{p.m, p.n}, Device::kCuda);
  flexq_ft::cuda::Queue queue;
  flexq_ft::cuda::fill(memory.data(), 0xff, memory.bytes(), queue.stream());
  for (int i = 0; i < 2; ++i) {  // the second one is a programmatic launch
    flexq_ft::gpu::invokeSkinnyGemm(y, x_gpu.tensor(), w_gpu.tensor(), p.scheme, config,
                                    queue.stream());
  }
  std::vector<unsigned char> host(memory.bytes());
  flexq_ft::cuda::copy(host.data(), memory.data(), host.size(), queue.stream());
  flexq_ft::cuda::synchronize(queue.stream());
  for (size_t i = 0; i < kGuard; ++i) {
    if (host[i] == 0xff && host[kGuard + bytes + i] == 0xff) continue;
    EXPECT_EQ(i, kGuard);
    break;
  }
  double worst = 0, largest = 0;
  for (int64_t m = 0; m < p.m; ++m) {
    for (int64_t n = 0; n < p.n; ++n) {
      double want = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        want += static_cast<double>(x.values[static_cast<size_t>(m * p.k + k)]) *
                w.values[static_cast<size_t>(n * p.k + k)];
      }
      const unsigned char* at = host.data() + kGuard + 4 * static_cast<size_t>(m * p.n + n);
      int32_t whole;
      float real;
      std::memcpy(&whole, at, 4);
      std::memcpy(&real, at, 4);
      const double got = integer ? whole : real;
      worst = std::isfinite(got) ? std::max(worst, std::fabs(got - want)) : INFINITY;
      largest = std::max(largest, std::fabs(want));
    }
  }
  const double limit = integer ? 0 : 1e-5 * largest;
  EXPECT(worst <= limit);
  if (worst <= limit) return;
  std::printf("%s m %d n %d k %d rows %d warps %d stages %d: error %g of %g\n", to_string(p.scheme),
              static_cast<int>(p.m), static_cast<int>(p.n), static_cast<int>(p.k), config.rows,
              config.warps, config.stages, worst, largest);
}

void check_all(Scheme scheme, DataType x_type, DataType w_type, int64_t k) {
  if (no_gpu()) return;
  const int64_t n = 72;  // ends inside a tile, for 64 rows inside the second block
  const Matrix w(w_type, n, k, 7);
  const Buffer w_gpu = on_gpu(w.bytes, w_type, Shape{n, k});
  for (const int64_t m : {3, 16, 31, 64}) {
    const GemmProblem problem{scheme, x_type, m, n, k};
    const Matrix x(x_type, m, k, 11);
    const Buffer x_gpu = on_gpu(x.bytes, x_type, Shape{m, k});
    for (SkinnyConfig config : flexq_ft::gpu::skinny_configs(problem)) {
      config.ahead = config.warps == 4 ? 2 : 0;  // changes nothing but the time
      check(problem, config, x, x_gpu, w, w_gpu);
    }
  }
}

}  // namespace

TEST(fp16) { check_all(Scheme::kFloat, DataType::kFp16, DataType::kFp16, 1032); }
TEST(bf16) { check_all(Scheme::kFloat, DataType::kBf16, DataType::kBf16, 1032); }
TEST(w8a16_of_fp16) { check_all(Scheme::kW8A16, DataType::kFp16, DataType::kInt8, 1040); }
TEST(w8a16_of_bf16) { check_all(Scheme::kW8A16, DataType::kBf16, DataType::kInt8, 1040); }
TEST(w8a8) { check_all(Scheme::kW8A8, DataType::kInt8, DataType::kInt8, 1040); }

TEST(every_piece_of_a_row_is_read_once) {
  for (const uint32_t warps : {4, 8}) {
    for (const uint32_t pieces : {1, 4, 31, 72, 512, 2752}) {
      std::multiset<uint32_t> seen;
      for (uint32_t warp = 0; warp < warps; ++warp) {
        for (uint32_t i = 0; skinny_chunk_start(i, warp, warps) < pieces; ++i) {
          const uint32_t start = skinny_chunk_start(i, warp, warps);
          for (uint32_t t = 0; t < 4 && start + t < pieces; ++t) seen.insert(start + t);
        }
      }
      EXPECT_EQ(seen.size(), pieces);
      EXPECT_EQ(std::set<uint32_t>(seen.begin(), seen.end()).size(), pieces);
    }
  }
}

TEST(default_order_of_a_sum_does_not_depend_on_the_batch) {
  for (const int64_t n : {72, 4096, 5120, 32000}) {
    for (const int64_t k : {256, 576, 4096, 11008}) {
      GemmProblem problem{Scheme::kW8A16, DataType::kBf16, 1, n, k};
      const int warps = flexq_ft::gpu::skinny_default(problem, 132).warps;
      for (problem.m = 1; problem.m <= flexq_ft::gpu::kSkinnyMaxTokens; ++problem.m) {
        const SkinnyConfig config = flexq_ft::gpu::skinny_default(problem, 132);
        EXPECT_EQ(config.warps, warps);
        bool compiled = false;
        for (const SkinnyConfig& c : flexq_ft::gpu::skinny_configs(problem)) {
          compiled = compiled || c == config;
        }
        EXPECT(compiled);
      }
    }
  }
}

TEST(what_is_not_taken) {
  const auto takes = [](Scheme scheme, DataType dtype, int64_t m, int64_t n, int64_t k) {
    return flexq_ft::gpu::skinny_gemm_takes({scheme, dtype, m, n, k});
  };
  EXPECT(takes(Scheme::kFloat, DataType::kFp16, 64, 7, 8));
  EXPECT(!takes(Scheme::kFloat, DataType::kFp16, 65, 7, 8));
  EXPECT(!takes(Scheme::kFloat, DataType::kFp16, 0, 7, 8));
  EXPECT(!takes(Scheme::kFloat, DataType::kFp32, 1, 7, 8));
  EXPECT(!takes(Scheme::kFloat, DataType::kFp16, 1, 7, 12));
  EXPECT(takes(Scheme::kW8A16, DataType::kBf16, 1, 7, 16));
  EXPECT(!takes(Scheme::kW8A16, DataType::kBf16, 1, 7, 24));
  EXPECT(!takes(Scheme::kW8A8, DataType::kFp16, 1, 7, 16));
  EXPECT(!takes(Scheme::kW6Ax, DataType::kFp16, 1, 7, 16));
  EXPECT(flexq_ft::gpu::skinny_configs({Scheme::kFloat, DataType::kFp16, 65, 7, 8}).empty());
}
