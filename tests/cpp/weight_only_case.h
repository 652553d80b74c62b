// Operands of a weight-only product in host and device memory, what its result must be, and the
// comparison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/weight_only_gemm.h"
#include "tests/cpp/w6ax_case.h"

namespace flexq_test {

using namespace flexq_kernels::gpu;

constexpr FloatType kTypes[] = {FloatType::kFp16, FloatType::kBf16};

inline std::vector<int64_t> sizes(std::vector<int64_t> all, std::vector<int64_t> few) {
  return small() ? few : all;
}

inline uint16_t bits_of(float x, FloatType type) {
  if (type == FloatType::kFp16) return half_bits(x);
  const __nv_bfloat16 value = __float2bfloat16_rn(x);
  uint16_t bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}

inline float value_of(uint16_t bits, FloatType type) {
  if (type == FloatType::kFp16) return half_value(bits);
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// ---- operands and what is expected ----

struct Tokens {
  int64_t m, k;
  FloatType type;
  std::vector<uint16_t> values;  // [m][k]

  Tokens(int64_t tokens, int64_t depth, FloatType float_type, uint64_t seed)
      : m(tokens), k(depth), type(float_type) {
    Random random(seed);
    for (int64_t i = 0; i < m * k; ++i) {
      const float sign = random.below(2) == 0 ? -1.0f : 1.0f;
      values.push_back(bits_of(sign * random.exponent(-6, 2), type));
    }
  }

  void set(int64_t token, int64_t at, float value) {
    values[static_cast<size_t>(token * k + at)] = bits_of(value, type);
  }
  float get(int64_t token, int64_t at) const {
    return value_of(values[static_cast<size_t>(token * k + at)], type);
  }
};

// The first tokens of a batch alone in device memory: what is read past them is NaN.
struct GpuTokens {
  DeviceArray<uint16_t> values;
  FloatType type;

  GpuTokens(const Tokens& x, int64_t m)
      : values(std::vector<uint16_t>(x.values.begin(), x.values.begin() + m * x.k)), type(x.type) {}
  FloatActivations get() const { return {values.data(), type}; }
};

struct Expected {
  std::vector<double> values, limits;  // [m][n]
  std::vector<float> twin;
  double largest = 0;  // of all tokens

  // How far a sum may be from the exact one: of each of a group's eight mma the tensor cores align
  // seventeen terms to the largest and cut them off; then come the groups and the eight chains.
  Expected(const Tokens& x, const WeightCase& w) {
    std::vector<float> row(static_cast<size_t>(x.k));
    for (int64_t token = 0; token < x.m; ++token) {
      for (int64_t at = 0; at < x.k; ++at) row[static_cast<size_t>(at)] = x.get(token, at);
      for (int64_t n = 0; n < w.n; ++n) add(row, w, n);
    }
    twin.resize(values.size());
    flexq_kernels::gemm_w6a16(twin.data(), x.values.data(), x.type,
                              {w.packed.data(), w.scales.data()}, nullptr, {x.m, w.n, w.k, 16});
  }

 private:
  void add(const std::vector<float>& x, const WeightCase& w, int64_t n) {
    double value = 0, magnitude = 0;
    for (int64_t g = 0; g < w.groups; ++g) {
      double sum = 0, terms = 0;
      for (int64_t at = g * kGroupSize; at < std::min(w.k, (g + 1) * kGroupSize); ++at) {
        const double term = static_cast<double>(x[static_cast<size_t>(at)]) *
                            w.codes[static_cast<size_t>(n * w.k + at)];
        sum += term;
        terms += std::fabs(term);
      }
      value += sum * static_cast<double>(w.scale(n, g));
      magnitude += terms * static_cast<double>(w.scale(n, g));
    }
    values.push_back(value);
    largest = std::max(largest, std::fabs(value));
    limits.push_back(static_cast<double>(8 * 17 + w.groups + 8) * 0x1p-23 * magnitude);
  }
};

// ---- runs and comparisons ----

inline std::string text(const GemmProblem& problem, FloatType type,
                        const WeightOnlyConfig& config) {
  std::ostringstream out;
  out << problem << " " << name_of(type) << " " << config;
  return out.str();
}

inline void fail(const std::string& what, int64_t token, int64_t row, double got, double want) {
  char line[160];
  std::snprintf(line, sizeof(line), ": token %lld row %lld: got %.9g, want %.9g",
                static_cast<long long>(token), static_cast<long long>(row), got, want);
  report_failure(__FILE__, __LINE__, what + line);
}

inline std::vector<float> run(const GpuTokens& x, const WeightCase& w, int64_t m,
                              const WeightOnlyConfig& config) {
  const GemmProblem problem{m, w.n, w.k, 16};
  DeviceArray<float> y(m * w.n);
  weight_only_gemm({y.data(), FloatType::kFp32}, x.get(), w.gpu(), problem, config, plain_launch());
  return y.fetch(text(problem, x.type, config).c_str());
}

// The largest errors so far, as shares of what is allowed.
struct Worst {
  double error = 0, from_twin = 0;
};

// Of the first tokens of those that are expected.
inline void compare(const std::vector<float>& got, const Expected& want, int64_t n,
                    const std::string& where, Worst& worst) {
  double twin = 0, dot = 0, squares = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = static_cast<double>(got[i]);
    const auto at = static_cast<int64_t>(i);
    if (!(std::fabs(value - want.values[i]) <= want.limits[i])) {
      return fail(where, at / n, at % n, value, want.values[i]);
    }
    if (want.limits[i] > 0) {
      worst.error = std::max(worst.error, std::fabs(value - want.values[i]) / want.limits[i]);
    }
    twin = std::max(twin, std::fabs(value - static_cast<double>(want.twin[i])));
    dot += 2 * value * want.values[i];
    squares += value * value + want.values[i] * want.values[i];
  }
  worst.from_twin = std::max(worst.from_twin, twin / (1e-5 * want.largest));
  if (!(twin <= 1e-5 * want.largest)) {
    fail(where + ": farthest from the CPU twin", -1, -1, twin, 1e-5 * want.largest);
  }
  // Of few outputs, all might be near zero.
  if (got.size() >= 64 && !(1 - dot / squares <= 1e-7)) {
    fail(where + ": calc_diff", -1, -1, 1 - dot / squares, 1e-7);
  }
}

// Rows must have these bits, whatever the batch and the config. NaNs are all alike.
inline bool same(float a, float b) {
  return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b));
}

inline void compare_bits(const std::vector<float>& got, const std::vector<float>& want, int64_t n,
                         const std::string& where) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (same(got[i], want[i])) continue;
    const auto at = static_cast<int64_t>(i);
    return fail(where, at / n, at % n, static_cast<double>(got[i]), static_cast<double>(want[i]));
  }
}

}  // namespace flexq_test
