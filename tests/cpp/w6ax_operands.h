// Operands of a W6Ax GEMM on both sides, what the CPU makes of them, and device memory that shows
// what was written. For tests of GPU kernels that take CodeOrder::kFragment.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/gemm.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/core/dtype.h"
#include "tests/cpp/check.h"
#include "tests/cpp/device_array.h"

namespace flexq_test {

using flexq_ft::Buffer;
using namespace flexq_kernels;
using namespace flexq_kernels::gpu;

constexpr size_t kGuard = 4096;
constexpr uint8_t kPoison = 0xff;  // NaN in every type

inline flexq_ft::Stream queue() { return {stream(), nullptr}; }

template <typename T>
Buffer on_gpu(const std::vector<T>& values) {
  Buffer buffer(values.size() * sizeof(T), flexq_ft::MemoryKind::kWorkspace,
                flexq_ft::Device::kCuda);
  flexq_ft::cuda::copy(buffer.data(), values.data(), buffer.bytes(), queue());
  flexq_ft::cuda::synchronize(queue());
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

  void poison() { flexq_ft::cuda::fill(memory_.data(), kPoison, memory_.bytes(), queue()); }
  void* get() const { return data<char>(memory_) + kGuard; }

  template <typename T>
  std::vector<T> fetch(size_t count, const std::string& what) const {
    const size_t bytes = count * sizeof(T);
    std::vector<uint8_t> all(bytes + 2 * kGuard);
    flexq_ft::cuda::copy(all.data(), memory_.data(), all.size(), queue());
    flexq_ft::cuda::synchronize(queue());
    for (size_t i = 0; i < kGuard; ++i) {
      if (all[i] == kPoison && all[kGuard + bytes + i] == kPoison) continue;
      report_failure(
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

}  // namespace flexq_test
