// One quantised product in host and device memory, what its result must be, and the comparison:
// group sums equal, outputs within the rounding of their sum (docs/numerics.md).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "flexq_kernels/activation_order.h"
#include "flexq_kernels/gemm.h"
#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/pack.h"
#include "tests/cpp/device_array.h"

namespace flexq_test {

using flexq_kernels::FloatType;
using flexq_kernels::GemmProblem;
using flexq_kernels::kGroupSize;
using flexq_kernels::kTileRows;

// Small and fast, and the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du) {}
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  int below(int limit) {
    return static_cast<int>(uint64_t{next()} * static_cast<uint32_t>(limit) >> 32);
  }
  int byte() {
    if (left_ == 0) bytes_ = next();
    left_ = (left_ + 3) % 4;
    const int drawn = static_cast<int>(bytes_ & 0xff);
    bytes_ >>= 8;
    return drawn;
  }
  float unit() { return static_cast<float>(next() >> 8) * 0x1p-24f; }
  float exponent(float low, float high) { return std::exp2(low + (high - low) * unit()); }

 private:
  uint64_t state_;
  uint32_t bytes_ = 0;
  int left_ = 0;
};

enum class Values {
  kRandom,    // codes over their range, scales over some powers of two
  kExtremes,  // least and greatest codes only
  kLeast,     // all codes the least: the largest sum
  kSpecial,   // random, with groups whose scale is 0, NaN, tiny or huge
};

inline uint16_t half_bits(float x) {
  const __half half = __float2half_rn(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float half_value(uint16_t bits) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

// ---- operands ----

struct WeightCase {
  int64_t n, k, groups;
  std::vector<int8_t> codes;     // [n, k]
  std::vector<uint8_t> packed;   // as on disk
  std::vector<uint16_t> scales;  // as on disk
  std::unique_ptr<DeviceArray<uint8_t>> gpu_packed;
  std::unique_ptr<DeviceArray<uint16_t>> gpu_scales;  // tiled

  WeightCase(int64_t rows, int64_t depth, Values values, uint64_t seed)
      : n(rows), k(depth), groups(flexq_kernels::group_count(depth)) {
    Random random(seed);
    codes.resize(static_cast<size_t>(n * k));
    for (int8_t& code : codes) {
      const int drawn = random.byte() % 64 - 32;
      code = static_cast<int8_t>(values == Values::kLeast      ? -32
                                 : values == Values::kExtremes ? drawn < 0 ? -32 : 31
                                                               : drawn);
    }
    scales.resize(static_cast<size_t>(groups * n));
    for (uint16_t& scale : scales) {
      scale = half_bits(random.exponent(-12, -5));
      if (values == Values::kSpecial && random.below(8) == 0) {
        scale = random.below(2) == 0 ? half_bits(1e-5f) : half_bits(65504.0f);
      }
    }
    packed.resize(static_cast<size_t>(flexq_kernels::packed_bytes(n, k)));
    flexq_kernels::pack_int6(packed.data(), codes.data(), n, k);
    upload();
  }

  flexq_kernels::gpu::Weight gpu() const { return {gpu_packed->data(), gpu_scales->data()}; }
  float scale(int64_t row, int64_t g) const {
    return half_value(scales[static_cast<size_t>(g * n + row)]);
  }

 private:
  void upload() {
    std::vector<uint16_t> tiled(static_cast<size_t>(flexq_kernels::tiled_scale_count(n, k)));
    flexq_kernels::tile_scales(tiled.data(), scales.data(), n, k);
    gpu_packed = std::make_unique<DeviceArray<uint8_t>>(packed);
    gpu_scales = std::make_unique<DeviceArray<uint16_t>>(tiled);
  }
};

struct InputCase {
  int64_t m, k, groups, stride;
  int act_bits;
  std::vector<int8_t> codes;  // [m, groups * 128], natural order
  std::vector<float> scales;  // [groups][stride]
  std::unique_ptr<DeviceArray<int8_t>> gpu_natural, gpu_fragment;
  std::unique_ptr<DeviceArray<float>> gpu_scales;

  InputCase(int64_t tokens, int64_t depth, int bits, Values values, uint64_t seed)
      : m(tokens),
        k(depth),
        groups(flexq_kernels::group_count(depth)),
        stride(flexq_kernels::gpu::scale_stride_of(tokens)),
        act_bits(bits) {
    Random random(seed + 1);
    const int limit = bits == 6 ? 32 : 128;
    codes.assign(static_cast<size_t>(m * groups * kGroupSize), 0);
    for (int64_t i = 0; i < m * k; ++i) {
      const int drawn = random.byte() % (2 * limit) - limit;
      codes[static_cast<size_t>(i / k * groups * kGroupSize + i % k)] =
          static_cast<int8_t>(values == Values::kLeast      ? -limit
                              : values == Values::kExtremes ? drawn < 0 ? -limit : limit - 1
                                                            : drawn);
    }
    scales.assign(static_cast<size_t>(groups * stride), std::nanf(""));  // also past m
    for (int64_t i = 0; i < groups * m; ++i) {
      float scale = random.exponent(-10, 0);
      if (values == Values::kSpecial) {
        const int which = random.below(64);
        if (which < 4) scale = 0.0f;
        if (which == 4) scale = std::nanf("");
        if (which == 5) scale = 0x1p-107f;
        if (which == 6) scale = 6e4f / 127.0f;
      }
      scales[static_cast<size_t>(i / m * stride + i % m)] = scale;
    }
    upload();
  }

  // Also after a change of codes or scales.
  void upload() {
    std::vector<int8_t> fragment(codes.size());
    flexq_kernels::to_fragment_order(fragment.data(), codes.data(), m * groups);
    gpu_natural = std::make_unique<DeviceArray<int8_t>>(codes);
    gpu_fragment = std::make_unique<DeviceArray<int8_t>>(fragment);
    gpu_scales = std::make_unique<DeviceArray<float>>(scales);
  }

  flexq_kernels::gpu::Activations gpu(flexq_kernels::gpu::CodeOrder order) const {
    const bool natural = order == flexq_kernels::gpu::CodeOrder::kNatural;
    return {(natural ? gpu_natural : gpu_fragment)->data(), gpu_scales->data(), stride, order};
  }
  float scale(int64_t token, int64_t g) const {
    return scales[static_cast<size_t>(g * stride + token)];
  }
};

// ---- outputs ----

inline int64_t bytes_of(FloatType type) { return type == FloatType::kFp32 ? 4 : 2; }

inline float read_float(const uint8_t* values, FloatType type, int64_t i) {
  const uint8_t* at = values + i * bytes_of(type);
  if (type == FloatType::kFp32) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  if (type == FloatType::kFp16) return half_value(bits);
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float rounded(float x, FloatType type) {
  if (type == FloatType::kFp32) return x;
  if (type == FloatType::kFp16) return half_value(half_bits(x));
  return __bfloat162float(__float2bfloat16_rn(x));
}

inline const char* name_of(FloatType type) {
  return type == FloatType::kFp32 ? "fp32" : type == FloatType::kFp16 ? "fp16" : "bf16";
}

// Bias, residual and place of an output.
struct OutputCase {
  int64_t m, n;
  FloatType type;
  std::vector<float> bias;        // empty: none
  std::vector<uint8_t> residual;  // in `type`; empty: none
  DeviceArray<uint8_t> values;
  std::unique_ptr<DeviceArray<float>> gpu_bias;
  std::unique_ptr<DeviceArray<uint8_t>> gpu_residual;

  OutputCase(int64_t tokens, int64_t rows, FloatType float_type, bool has_bias, bool has_residual,
             uint64_t seed)
      : m(tokens), n(rows), type(float_type), values(tokens * rows * bytes_of(float_type)) {
    Random random(seed + 2);
    if (has_bias) {
      bias.resize(static_cast<size_t>(n));
      for (float& b : bias) b = 4 * random.unit() - 2;
      gpu_bias = std::make_unique<DeviceArray<float>>(bias);
    }
    if (!has_residual) return;
    for (int64_t i = 0; i < m * n; ++i) {
      const float value = 8 * random.unit() - 4;
      uint8_t bytes[4];
      if (type == FloatType::kFp32) {
        std::memcpy(bytes, &value, 4);
      } else if (type == FloatType::kFp16) {
        const uint16_t bits = half_bits(value);
        std::memcpy(bytes, &bits, 2);
      } else {
        const __nv_bfloat16 bits = __float2bfloat16_rn(value);
        std::memcpy(bytes, &bits, 2);
      }
      residual.insert(residual.end(), bytes, bytes + bytes_of(type));
    }
    gpu_residual = std::make_unique<DeviceArray<uint8_t>>(residual);
  }

  flexq_kernels::gpu::Output gpu() const {
    return {values.data(), type, gpu_bias ? gpu_bias->data() : nullptr,
            gpu_residual ? gpu_residual->data() : nullptr};
  }
};

// ---- what must come out ----

// sums [m, n, groups] -> the output of the plain kernel, step by step.
inline float plain_output(const WeightCase& w, const InputCase& x, const OutputCase& y,
                          const int32_t* sums, int64_t token, int64_t row) {
  constexpr float kBias = 12582912.0f;
  float sum = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    const float quarter = 0.25f * w.scale(row, g);
    const float t =
        std::fmaf(kBias + 4.0f * static_cast<float>(sums[g]), quarter, -kBias * quarter);
    sum = std::fmaf(t, x.scale(token, g), sum);
  }
  if (!y.bias.empty()) sum += y.bias[static_cast<size_t>(row)];
  float value = rounded(sum, y.type);
  if (!y.residual.empty()) {
    value = rounded(value + read_float(y.residual.data(), y.type, token * y.n + row), y.type);
  }
  return value;
}

// The exact output and how far a correct kernel may be from it: every order of summation rounds
// each of its terms and partial sums once, then come the roundings of the type.
struct Exact {
  double value = 0;
  double slack = 0;

  bool admits(float got, FloatType type) const {
    if (std::isnan(value)) return std::isnan(got);
    const double greatest = type == FloatType::kFp16 ? 65504 : 3.38e38;
    if (std::isinf(got)) return std::fabs(value) + slack >= greatest && (got > 0) == (value > 0);
    return std::fabs(got - value) <= slack;
  }
};

inline Exact exact_output(const WeightCase& w, const InputCase& x, const OutputCase& y,
                          const int32_t* sums, int64_t token, int64_t row) {
  const double unit = y.type == FloatType::kFp16   ? 0x1p-11
                      : y.type == FloatType::kBf16 ? 0x1p-8
                                                   : 0x1p-24;
  const double least = y.type == FloatType::kFp16 ? 0x1p-25 : 0x1p-134;
  Exact exact;
  double magnitude = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    const double term = static_cast<double>(w.scale(row, g)) * x.scale(token, g) * sums[g];
    exact.value += term;
    magnitude += std::fabs(term);
  }
  exact.slack = static_cast<double>(w.groups + 2) * (0x1p-23 * magnitude + 0x1p-149);
  if (!y.bias.empty()) {
    exact.value += y.bias[static_cast<size_t>(row)];
    exact.slack += 0x1p-24 * std::fabs(exact.value);
  }
  exact.slack += 1.01 * unit * std::fabs(exact.value) + unit * exact.slack + least;
  if (!y.residual.empty()) {
    exact.value += read_float(y.residual.data(), y.type, token * y.n + row);
    exact.slack += 1.01 * (unit + 0x1p-24) * std::fabs(exact.value) + unit * exact.slack + least;
  }
  return exact;
}

// sums [m, n, groups] from the CPU.
inline std::vector<int32_t> cpu_sums(const WeightCase& w, const InputCase& x) {
  std::vector<int32_t> sums(static_cast<size_t>(x.m * w.n * w.groups));
  flexq_kernels::group_sums_w6ax(sums.data(), x.codes.data(), w.packed.data(),
                                 {x.m, w.n, w.k, x.act_bits});
  return sums;
}

// ---- comparison: empty, or the first difference ----

inline std::string compare_sums(const std::vector<int32_t>& got, const std::vector<int32_t>& want,
                                int64_t n, int64_t groups) {
  int64_t different = 0, first = -1;
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    ++different;
    if (first < 0) first = static_cast<int64_t>(i);
  }
  if (different == 0) return {};
  std::ostringstream out;
  out << different << " of " << want.size() << " group sums differ, first of token "
      << first / groups / n << " row " << first / groups % n << " group " << first % groups << ": "
      << got[static_cast<size_t>(first)] << ", not " << want[static_cast<size_t>(first)];
  return out.str();
}

// exactly: bit for bit the plain kernel's; otherwise by tolerance.
inline std::string compare_outputs(const std::vector<uint8_t>& got, const WeightCase& w,
                                   const InputCase& x, const OutputCase& y,
                                   const std::vector<int32_t>& sums, bool exactly) {
  int64_t different = 0;
  std::ostringstream out;
  for (int64_t i = 0; i < x.m * w.n; ++i) {
    const int64_t token = i / w.n, row = i % w.n;
    const int32_t* of_row = sums.data() + i * w.groups;
    const float value = read_float(got.data(), y.type, i);
    const Exact exact = exact_output(w, x, y, of_row, token, row);
    bool right = exact.admits(value, y.type);
    float want = static_cast<float>(exact.value);
    if (exactly) {
      want = plain_output(w, x, y, of_row, token, row);
      right = right && (value == want || (std::isnan(value) && std::isnan(want)));
    }
    if (right) continue;
    if (different++ == 0) {
      out << "token " << token << " row " << row << ": " << value << ", not " << want
          << (exactly ? " (exactly)" : " +- ") << exact.slack;
    }
  }
  if (different == 0) return {};
  std::ostringstream all;
  all << different << " of " << x.m * w.n << " outputs in " << name_of(y.type)
      << (y.bias.empty() ? "" : " + bias") << (y.residual.empty() ? "" : " + residual")
      << " are wrong, first " << out.str();
  return all.str();
}

}  // namespace flexq_test
