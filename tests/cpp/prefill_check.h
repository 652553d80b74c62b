// A launch of a GEMM of many tokens compared with what its operands say, to the last bit.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/cpp/check.h"
#include "tests/cpp/prefill_family.h"

namespace flexq_test {

using flexq_ft::BFloat16;
using flexq_kernels::FloatType;

inline std::string g_running;  // the launch under way

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

inline const char* name_of(FloatType type) {
  return type == FloatType::kFp32 ? "fp32" : type == FloatType::kFp16 ? "fp16" : "bf16";
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
  if (!guards) report_failure(__FILE__, __LINE__, run + ": guard bands written to");
  if (wrong == 0) return;
  std::string values;
  same(first, &values);
  std::ostringstream out;
  out << run << ": " << wrong << " of " << rows * n << " wrong, first (token " << first / n
      << ", row " << first % n << "): " << values;
  report_failure(__FILE__, __LINE__, out.str());
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
  what << name_of(type) << (bias ? " +bias" : "") << (residual ? " +residual" : "");
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
    const bool same_kind = o.kind == Values::kInfinite ? !std::isfinite(a) && !std::isfinite(b)
                                                       : std::isnan(a) && std::isnan(b);
    return std::memcmp(&got[i], &rounded, sizeof(T)) == 0 || same_kind;
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

}  // namespace flexq_test
