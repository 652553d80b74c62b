// One small product per scheme and kind of kernel, and a small search: for compute-sanitizer too.
// A no-op without a GPU.
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/core/dtype.h"
#include "ft/kernels/gemm_tuner.h"
#include "ft/kernels/gpu_gemm.h"
#include "tests/cpp/check.h"

using flexq_ft::Buffer;
using flexq_ft::DataType;
using flexq_ft::Device;
using flexq_ft::GemmProblem;
using flexq_ft::MemoryKind;
using flexq_ft::Scheme;
namespace cuda = flexq_ft::cuda;

namespace {

constexpr int64_t kGuard = 64;  // elements behind y

uint32_t g_random = 12345;
int next_code() {
  g_random = g_random * 1664525u + 1013904223u;
  return static_cast<int>(g_random >> 24) - 128;
}

// Codes of -128 … 127, exact in every type, so that every sum is exact in fp32 too.
Buffer on_device(const std::vector<int>& codes, DataType dtype, cuda::Queue& queue) {
  const auto count = static_cast<int64_t>(codes.size());
  Buffer host(dtype, {count}, MemoryKind::kWorkspace);
  for (int64_t i = 0; i < count; ++i) {
    const int code = codes[static_cast<size_t>(i)];
    const auto value = static_cast<float>(code);
    if (dtype == DataType::kInt8) {
      static_cast<int8_t*>(host.data())[i] = static_cast<int8_t>(code);
    } else if (dtype == DataType::kFp16) {
      static_cast<flexq_ft::Half*>(host.data())[i] = flexq_ft::from_float<flexq_ft::Half>(value);
    } else {
      static_cast<flexq_ft::BFloat16*>(host.data())[i] =
          flexq_ft::from_float<flexq_ft::BFloat16>(value);
    }
  }
  Buffer out(dtype, {count}, MemoryKind::kWorkspace, Device::kCuda);
  cuda::copy(out.data(), host.data(), host.bytes(), queue.stream());
  cuda::synchronize(queue.stream());
  return out;
}

void expect_product(flexq_ft::GpuGemm& gemm, const GemmProblem& p, cuda::Queue& queue) {
  std::vector<int> x(static_cast<size_t>(p.m * p.k)), w(static_cast<size_t>(p.n * p.k));
  for (int& code : x) code = next_code();
  for (int& code : w) code = next_code();
  const DataType w_dtype = p.scheme == Scheme::kFloat ? p.dtype : DataType::kInt8;
  const bool integer = p.scheme == Scheme::kW8A8;
  const Buffer x_device = on_device(x, p.dtype, queue);
  const Buffer w_device = on_device(w, w_dtype, queue);
  const auto y_dtype = integer ? DataType::kInt32 : DataType::kFp32;
  const int64_t count = p.m * p.n + kGuard;
  Buffer y(y_dtype, {count}, MemoryKind::kWorkspace, Device::kCuda);
  cuda::fill(y.data(), 0xff, y.bytes(), queue.stream());
  gemm.run(y.tensor(y_dtype, {p.m, p.n}), x_device.tensor(p.dtype, {p.m, p.k}),
           w_device.tensor(w_dtype, {p.n, p.k}), p.scheme, queue.stream());
  Buffer host(y_dtype, {count}, MemoryKind::kWorkspace);
  cuda::copy(host.data(), y.data(), y.bytes(), queue.stream());
  cuda::synchronize(queue.stream());
  const auto* ints = static_cast<const int32_t*>(host.data());
  const auto* floats = static_cast<const float*>(host.data());
  int wrong = 0;
  for (int64_t i = 0; i < p.m * p.n; ++i) {
    int64_t sum = 0;
    for (int64_t j = 0; j < p.k; ++j) {
      sum += int64_t{x[static_cast<size_t>(i / p.n * p.k + j)]} *
             w[static_cast<size_t>(i % p.n * p.k + j)];
    }
    const double got = integer ? static_cast<double>(ints[i]) : static_cast<double>(floats[i]);
    wrong += !(got == static_cast<double>(sum));
  }
  EXPECT_EQ(wrong, 0);
  for (int64_t i = p.m * p.n; i < count; ++i) EXPECT_EQ(ints[i], -1);
}

bool no_gpu() { return cuda::device_count() == 0; }

}  // namespace

TEST(small_products_are_exact) {
  if (no_gpu()) return;
  cuda::Queue queue;
  flexq_ft::GpuGemmLimits limits;
  limits.max_tokens = 65;
  limits.largest_w8a16 = 48 * 192;
  const auto gemm = flexq_ft::make_gpu_gemm(limits);
  const auto before = flexq_ft::memory_in_use(Device::kCuda);
  for (int64_t m : {1, 7, 16, 17, 65}) {
    for (DataType dtype : {DataType::kFp16, DataType::kBf16}) {
      expect_product(*gemm, {Scheme::kFloat, dtype, m, 48, 192}, queue);
      expect_product(*gemm, {Scheme::kW8A16, dtype, m, 48, 192}, queue);
    }
    expect_product(*gemm, {Scheme::kW8A8, DataType::kInt8, m, 48, 192}, queue);
  }
  EXPECT((flexq_ft::memory_in_use(Device::kCuda) == before));
}

TEST(no_tokens_are_a_no_op_and_odd_sizes_are_refused) {
  if (no_gpu()) return;
  cuda::Queue queue;
  flexq_ft::GpuGemmLimits limits;
  limits.max_tokens = 8;
  const auto gemm = flexq_ft::make_gpu_gemm(limits);
  const Buffer some(size_t{1} << 16, MemoryKind::kWorkspace, Device::kCuda);
  const auto run = [&](int64_t m, int64_t n, int64_t k) {
    gemm->run(some.tensor(DataType::kFp32, {m, n}), some.tensor(DataType::kFp16, {m, k}),
              some.tensor(DataType::kFp16, {n, k}), Scheme::kFloat, queue.stream());
  };
  run(0, 16, 16);
  EXPECT_THROW(run(1, 16, 20), flexq_ft::Error, "k=20");
}

// A table may lack products of few tokens, which are our kernels' unless it says otherwise.
TEST(a_row_of_many_tokens_does_not_serve_few) {
  if (no_gpu()) return;
  flexq_ft::TuneOptions options;
  options.heuristics = 1;
  options.cold_bytes = 1 << 16;
  options.replays = 2;
  const auto tuner = flexq_ft::make_gemm_tuner(options);
  for (const auto& [scheme, few] : {std::pair{Scheme::kFloat, 16}, {Scheme::kW8A16, 64}}) {
    flexq_ft::GemmTable table = tuner->empty_table();
    table.set(tuner->tune({scheme, DataType::kFp16, 64, 128, {128}}).front().row);
    flexq_ft::GpuGemmLimits limits;
    limits.max_tokens = 128;
    limits.largest_w8a16 = 64 * 128;
    limits.table = table.text();
    const auto gemm = flexq_ft::make_gpu_gemm(limits);
    const auto choice = [&](int64_t m) {
      return gemm->choice({scheme, DataType::kFp16, m, 64, 128});
    };
    EXPECT(choice(few).find("skinny ") == 0 && choice(few).find("(default)") != std::string::npos);
    EXPECT(choice(few + 1).find("(table)") != std::string::npos);
  }
}

TEST(search_finds_a_row_that_the_runtime_takes) {
  if (no_gpu()) return;
  flexq_ft::TuneOptions options;
  options.heuristics = 4;
  options.cold_bytes = 1 << 16;
  options.replays = 2;
  const auto tuner = flexq_ft::make_gemm_tuner(options);
  flexq_ft::GpuGemmLimits limits;
  limits.max_tokens = 128;
  limits.largest_w8a16 = 64 * 128;
  cuda::Queue queue;
  for (Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
    const DataType dtype = scheme == Scheme::kW8A8 ? DataType::kInt8 : DataType::kFp16;
    flexq_ft::GemmTable table = tuner->empty_table();
    for (const auto& result : tuner->tune({scheme, dtype, 64, 128, {1, 16, 128}})) {
      for (const std::string& refused : result.refused) EXPECT_EQ(refused, "");
      table.set(result.row);
    }
    EXPECT_EQ(table.size(), size_t{3});
    limits.table = table.text();
    const auto gemm = flexq_ft::make_gpu_gemm(limits);
    for (int64_t m : {1, 9, 128}) {
      EXPECT(gemm->choice({scheme, dtype, m, 64, 128}).find("(table)") != std::string::npos);
      expect_product(*gemm, {scheme, dtype, m, 64, 128}, queue);
    }
  }
}
