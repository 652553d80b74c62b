// Arrays that are on the host and on the GPU, for tests that compare an op with its CPU twin.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "flexq_kernels/activation_order.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/core/row_order.h"
#include "ft/kernels/product.h"
#include "tests/cpp/check.h"

namespace flexq_ft {

constexpr size_t kGuard = 4096;
constexpr int kPoison = 0xff;

inline Stream stream() {
  static cuda::Queue queue;
  return queue.stream();
}

inline bool without_gpu() {
  if (cuda::device_count() > 0) return false;
  std::printf("no GPU here (%s): not tested\n", cuda::no_device_cause().c_str());
  return true;
}

// The same array on the host and, between guard bands, on the GPU. shift: bytes by which it is off
// a 16-byte boundary there.
class Both {
 public:
  Both(DataType dtype, Shape shape, size_t shift = 0)
      : dtype_(dtype),
        shape_(shape),
        shift_(shift),
        host_(static_cast<size_t>(shape.count()) * size_of(dtype) + 1, kPoison),
        memory_(host_.size() + 2 * kGuard, MemoryKind::kWorkspace, Device::kCuda) {
    cuda::fill(memory_.data(), kPoison, memory_.bytes(), stream());
  }

  Tensor host() { return Tensor(host_.data(), dtype_, shape_); }
  Tensor gpu() { return Tensor(at(), dtype_, shape_, Device::kCuda); }

  // Random values on both sides: floats around 0, or integers up to `limit`.
  Both& random(int limit = 1000) {
    static std::mt19937 engine(20250311);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < shape_.count(); ++i) {
      if (dtype_ == DataType::kInt32) {
        reinterpret_cast<int32_t*>(host_.data())[i] =
            static_cast<int>(engine() % static_cast<unsigned>(2 * limit)) - limit;
        continue;
      }
      dispatch_float(dtype_, [&](auto tag) {
        using T = decltype(tag);
        reinterpret_cast<T*>(host_.data())[i] = from_float<T>(normal(engine));
      });
    }
    return upload();
  }

  Both& values(const std::vector<int32_t>& list) {
    std::memcpy(host_.data(), list.data(), list.size() * sizeof(int32_t));
    return upload();
  }

  Both& upload() {
    cuda::copy(at(), host_.data(), host().bytes(), stream());
    return *this;
  }

  // What lies on the GPU, after a look at the guard bands.
  std::vector<uint8_t> fetch() {
    std::vector<uint8_t> all(memory_.bytes());
    cuda::copy(all.data(), memory_.data(), all.size(), stream());
    cuda::synchronize(stream());
    const size_t begin = kGuard + shift_;
    const size_t end = begin + host().bytes();
    for (size_t i = 0; i < all.size(); ++i) {
      if (i < begin || i >= end) EXPECT_EQ(int{all[i]}, kPoison);
    }
    return std::vector<uint8_t>(all.begin() + static_cast<long>(begin),
                                all.begin() + static_cast<long>(end));
  }

  // The host's values <- the GPU's.
  void download() {
    const std::vector<uint8_t> got = fetch();
    std::memcpy(host_.data(), got.data(), got.size());
  }

  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(host_.data());
  }
  void set(int64_t i, float value) {
    dispatch_float(dtype_,
                   [&](auto tag) { data<decltype(tag)>()[i] = from_float<decltype(tag)>(value); });
  }
  float get(int64_t i) {
    float value = 0.0f;
    dispatch_float(dtype_, [&](auto tag) { value = to_float(data<decltype(tag)>()[i]); });
    return value;
  }

  void expect_equal() {
    const std::vector<uint8_t> got = fetch();
    EXPECT_EQ(std::memcmp(got.data(), host_.data(), got.size()), 0);
  }

  // Values near those of the host: as near as the roundings of the type leave them.
  void expect_close() {
    std::vector<uint8_t> got = fetch();
    const float step = dtype_ == DataType::kFp16   ? 0x1p-9f
                       : dtype_ == DataType::kBf16 ? 0x1p-6f
                                                   : 1e-5f;
    dispatch_float(dtype_, [&](auto tag) {
      using T = decltype(tag);
      for (int64_t i = 0; i < shape_.count(); ++i) {
        const float g = to_float(reinterpret_cast<const T*>(got.data())[i]);
        const float w = to_float(reinterpret_cast<const T*>(host_.data())[i]);
        EXPECT(std::fabs(g - w) <= step * std::fabs(w) + 1e-5f);
      }
    });
  }

 private:
  void* at() { return static_cast<char*>(memory_.data()) + kGuard + shift_; }

  DataType dtype_;
  Shape shape_;
  size_t shift_;
  std::vector<uint8_t> host_;
  Buffer memory_;
};

// Codes and scales on the GPU as W6Ax products read them there (LinearInput::scale_stride, order),
// of groups of 128; a few columns of scales too many.
class ByGroup {
 public:
  ByGroup(int64_t tokens, int64_t groups)
      : tokens_(tokens),
        groups_(groups),
        stride_(flexq_kernels::gpu::scale_stride_of(tokens) + 4),
        codes_(DataType::kInt8, Shape{tokens, groups * 128}),
        scales_(DataType::kFp32, Shape{groups, stride_}) {}

  void describe(LinearInput& input) {
    input.codes = codes_.gpu();
    input.scales = scales_.gpu();
    input.scale_stride = stride_;
    input.order = flexq_kernels::gpu::CodeOrder::kFragment;
  }

  // codes [tokens, groups * 128] in natural order, scales [tokens, groups].
  void expect_equal(const int8_t* codes, const float* scales) {
    const std::vector<uint8_t> code_bytes = codes_.fetch(), scale_bytes = scales_.fetch();
    for (int64_t token = 0; token < tokens_; ++token) {
      for (int64_t i = 0; i < groups_ * 128; ++i) {
        const int word = flexq_kernels::fragment_word(static_cast<int>(i % 128 / 4));
        const int64_t at = i / 128 * 128 + word * 4 + i % 4;
        EXPECT_EQ(
            int{static_cast<int8_t>(code_bytes[static_cast<size_t>(token * groups_ * 128 + at)])},
            int{codes[token * groups_ * 128 + i]});
      }
    }
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t token = 0; token < stride_; ++token) {
        const uint8_t* got = scale_bytes.data() + (g * stride_ + token) * 4;
        const uint32_t poison = 0xffffffffu;
        const void* want = &poison;
        if (token < tokens_) want = scales + token * groups_ + g;
        EXPECT_EQ(std::memcmp(got, want, 4), 0);
      }
    }
  }

 private:
  int64_t tokens_, groups_, stride_;
  Both codes_, scales_;
};

// A LinearInput on both sides. group 0: not quantised.
struct Input {
  Both values;
  Both codes;
  Both scales;
  LinearInput host;
  LinearInput gpu;

  static int64_t groups(int64_t k, int64_t group) {
    return group == 0 ? 1 : (k + group - 1) / group;
  }

  Input(DataType dtype, int64_t tokens, int64_t k, int64_t group, int act_bits)
      : values(dtype, Shape{tokens, k}),
        codes(DataType::kInt8, Shape{tokens, groups(k, group) * group}),
        scales(DataType::kFp32, Shape{tokens, groups(k, group)}) {
    host.values = values.host();
    host.dtype = dtype;
    host.group = group;
    host.act_bits = group == 0 ? 16 : act_bits;
    gpu = host;
    gpu.values = values.gpu();
    if (group == 0) return;
    host.codes = codes.host();
    host.scales = scales.host();
    gpu.codes = codes.gpu();
    gpu.scales = scales.gpu();
  }

  // Codes are those that the CPU makes of the values that the GPU made.
  void expect_codes() {
    if (!gpu.quantized()) return;
    const std::vector<uint8_t> made = values.fetch();
    std::memcpy(host.values.raw(), made.data(), made.size());
    quantize_values(host, {});
    codes.expect_equal();
    scales.expect_equal();
  }
};

// A product on the GPU, and what the CPU makes of it before its op.
struct Operand {
  Both raw;
  Both act_scale;
  Both weight_scale;
  Both bias;
  Both finished;
  Product gpu;
  Product host;

  Operand(bool int32, int64_t tokens, int64_t n)
      : raw(int32 ? DataType::kInt32 : DataType::kFp32, Shape{tokens, n}),
        act_scale(DataType::kFp32, Shape{tokens}),
        weight_scale(DataType::kFp32, Shape{n}),
        bias(DataType::kFp32, Shape{n}),
        finished(DataType::kFp32, Shape{tokens, n}) {
    raw.random(3);
    gpu.values = raw.gpu();
    Product unfinished;
    unfinished.values = raw.host();
    if (int32) {
      gpu.act_scale = act_scale.random().gpu();
      gpu.weight_scale = weight_scale.random().gpu();
      gpu.bias = bias.random().gpu();
      unfinished.act_scale = act_scale.host();
      unfinished.weight_scale = weight_scale.host();
      unfinished.bias = bias.host();
    }
    host.values = finished.host();
    invokeFinishProduct(host.values, unfinished, {});
  }

  // The GPU's columns lie in this order from here on.
  void arrange(RowOrder order) {
    const int64_t n = gpu.values.dim(1);
    order.arrange(raw.data<uint32_t>(), gpu.values.dim(0), n);
    raw.upload();
    for (Both* values : {&weight_scale, &bias}) {
      order.arrange(values->data<uint32_t>(), 1, n);
      values->upload();
    }
  }
};

}  // namespace flexq_ft
