#include "ft/bench/read_stream.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/core/buffer.h"
#include "ft/core/check.h"
#include "ft/decoding/host.h"

namespace flexq_ft {

namespace {

constexpr size_t kWanted = size_t{1} << 30;  // far above any cache
constexpr int kLanes = 16;                   // independent sums: several vector loads in flight
constexpr int64_t kBlockWords = 4096;

size_t buffer_bytes(size_t asked) {
  if (asked != 0) return std::max(asked, kBlockWords * sizeof(uint64_t));
  const size_t available = available_memory();
  return available == 0 ? kWanted : std::min(kWanted, available / 4);
}

uint64_t sum_words(const uint64_t* words, int64_t count) {
  uint64_t sums[kLanes] = {};
  for (int64_t i = 0; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += words[i + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t lane : sums) sum += lane;
  return sum;
}

}  // namespace

double detail::median(double* values, int count) {
  std::sort(values, values + count);
  return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

double measure_read_stream_cpu(const ReadStreamOptions& options, int threads) {
  FLEXQ_FT_CHECK(options.passes >= 1, "passes is ", options.passes);
  const ThreadCount team(threads > 0 ? threads : usable_cores());
  const int64_t blocks = static_cast<int64_t>(buffer_bytes(options.bytes)) /
                         (kBlockWords * static_cast<int64_t>(sizeof(uint64_t)));
  const int64_t words = std::max<int64_t>(blocks, 1) * kBlockWords;
  const Buffer buffer(static_cast<size_t>(words) * sizeof(uint64_t), MemoryKind::kWorkspace);
  uint64_t* data = static_cast<uint64_t*>(buffer.data());
  const auto each_range = [&](const auto& run) {
    flexq_kernels::parallel_ranges(words / kBlockWords, words, run);
  };
  // Each thread writes first what it reads later, so that pages lie near their reader.
  each_range([&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kBlockWords; i < end * kBlockWords; ++i) {
      data[i] = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u;
    }
  });
  std::atomic<uint64_t> sink{0};
  std::vector<double> seconds;
  for (int pass = 0; pass <= options.passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    each_range([&](int64_t begin, int64_t end) {
      sink += sum_words(data + begin * kBlockWords, (end - begin) * kBlockWords);
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (pass > 0) seconds.push_back(elapsed.count());  // the first one warms up
  }
  return static_cast<double>(buffer.bytes()) / detail::median(seconds.data(), options.passes);
}

}  // namespace flexq_ft
