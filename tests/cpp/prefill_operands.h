// Operands of a W6Ax GEMM on the host and on the GPU, and its sums to the last bit.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/pack.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/core/dtype.h"

namespace flexq_test {

using flexq_ft::Buffer;
using flexq_ft::Half;
using flexq_ft::MemoryKind;
using flexq_kernels::group_count;
using flexq_kernels::kGroupSize;
using flexq_kernels::kTileRows;
using flexq_kernels::row_tiles;
namespace gpu = flexq_kernels::gpu;

constexpr size_t kGuard = 4096;

inline bool no_gpu() {
  if (flexq_ft::cuda::built() && flexq_ft::cuda::device_count() > 0) return false;
  std::printf("skipped: no GPU\n");
  return true;
}

inline flexq_ft::Stream stream() {
  static flexq_ft::cuda::Queue queue;
  return queue.stream();
}

// Bytes on the GPU between guard bands, all 0xff at first.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : bytes_(bytes),
        buffer_(bytes + 2 * kGuard, MemoryKind::kWorkspace, flexq_ft::Device::kCuda) {
    poison();
  }

  template <typename T>
  explicit Memory(const std::vector<T>& values) : Memory(values.size() * sizeof(T)) {
    flexq_ft::cuda::copy(at(), values.data(), bytes_, stream());
    flexq_ft::cuda::synchronize(stream());
  }

  void poison() { flexq_ft::cuda::fill(buffer_.data(), 0xff, buffer_.bytes(), stream()); }

  void* at() { return static_cast<char*>(buffer_.data()) + kGuard; }

  template <typename T>
  T* as() {
    return static_cast<T*>(at());
  }

  // What lies there; false where a guard band was written to.
  bool fetch(std::vector<unsigned char>& out) {
    std::vector<unsigned char> all(buffer_.bytes());
    flexq_ft::cuda::copy(all.data(), buffer_.data(), all.size(), stream());
    flexq_ft::cuda::synchronize(stream());
    out.assign(all.begin() + kGuard, all.end() - kGuard);
    for (size_t i = 0; i < kGuard; ++i) {
      if (all[i] != 0xff || all[all.size() - 1 - i] != 0xff) return false;
    }
    return true;
  }

 private:
  size_t bytes_;
  Buffer buffer_;
};

enum class Values { kRandom, kExtreme, kNan, kInfinite };

// Operands of up to `m` tokens on both sides, and their exact group sums.
struct Operands {
  int64_t m, n, k, groups;
  Values kind;
  std::vector<int8_t> host_codes;
  std::vector<uint8_t> host_packed;
  std::vector<float> row_scales;    // [n][groups]
  std::vector<float> token_scales;  // [m][groups]
  std::vector<int32_t> sums;        // [m][n][groups]
  std::vector<float> bias;
  std::vector<float> residual;
  Memory codes, packed, scales, tiled, bias_memory;

  Operands(int64_t m, int64_t n, int64_t k, int bits, Values kind, uint32_t seed = 1)
      : Operands(m, n, k, kind, make(m, n, k, bits, kind, seed)) {}

  gpu::Activations activations() {
    return {codes.as<int8_t>(), scales.as<float>(), gpu::scale_stride_of(m),
            gpu::CodeOrder::kNatural};
  }
  // [m][n] as the kernels add it up: group after group in every slice, then the slices.
  const std::vector<float>& product(int slices = 1) {
    std::vector<float>& all = products_[slices];
    if (!all.empty()) return all;
    all.resize(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m * n; ++i) {
      float y = 0;
      for (int slice = 0; slice < slices; ++slice) {
        float part = 0;
        for (int64_t g = groups * slice / slices; g < groups * (slice + 1) / slices; ++g) {
          const float t = row_scales[static_cast<size_t>(i % n * groups + g)] *
                          static_cast<float>(sums[static_cast<size_t>(i * groups + g)]);
          part = std::fmaf(t, token_scales[static_cast<size_t>(i / n * groups + g)], part);
        }
        y = slice == 0 ? part : y + part;
      }
      all[static_cast<size_t>(i)] = y;
    }
    return all;
  }

  gpu::Weight weight() { return {packed.as<uint8_t>(), tiled.as<uint16_t>()}; }

 private:
  std::map<int, std::vector<float>> products_;  // of so many slices

  struct Made {
    std::vector<int8_t> a;  // [m][groups * 128]
    std::vector<uint8_t> packed;
    std::vector<uint16_t> tiled;  // [row tiles][groups][16]
    std::vector<float> row_scales, token_scales, stepped;
    std::vector<float> bias, residual;
  };

  static Made make(int64_t m, int64_t n, int64_t k, int bits, Values kind, uint32_t seed) {
    const int64_t groups = group_count(k);
    const auto at = [](int64_t i) { return static_cast<size_t>(i); };
    std::mt19937 engine(seed);
    const auto uniform = [&](int low, int high) {
      return low + static_cast<int>(engine() % static_cast<unsigned>(high - low + 1));
    };
    const int limit = bits == 6 ? 31 : 127;
    Made made;
    std::vector<int8_t> w(at(n * k));
    for (auto& code : w)
      code = static_cast<int8_t>(kind == Values::kExtreme ? -32 : uniform(-32, 31));
    made.packed.resize(at(flexq_kernels::packed_bytes(n, k)));
    flexq_kernels::pack_int6(made.packed.data(), w.data(), n, k);
    made.a.assign(at(m * groups * kGroupSize), 0);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        made.a[at(i * groups * kGroupSize + j)] = static_cast<int8_t>(
            kind == Values::kExtreme ? (i % 3 == 1 && j % 2 ? limit : -limit - 1)
                                     : uniform(-limit - 1, limit));
      }
    }
    made.tiled.assign(at(row_tiles(n) * groups * kTileRows), 0);
    made.row_scales.resize(at(n * groups));
    for (int64_t i = 0; i < n * groups; ++i) {
      const int64_t row = i / groups, g = i % groups;
      float scale = static_cast<float>(uniform(100, 4000)) * 1e-6f;
      if (kind == Values::kExtreme) scale = row % 3 == 0 ? 65504.0f : row % 3 == 1 ? 1e-5f : 1.0f;
      if (kind == Values::kInfinite && row % 5 == 2 && g == 0) scale = INFINITY;
      const Half half = flexq_ft::from_float<Half>(scale);
      made.row_scales[at(i)] = flexq_ft::to_float(half);
      std::memcpy(&made.tiled[at((row / kTileRows * groups + g) * kTileRows + row % kTileRows)],
                  &half, 2);
    }
    const int64_t stride = gpu::scale_stride_of(m);
    made.stepped.assign(at(groups * stride), std::numeric_limits<float>::quiet_NaN());
    made.token_scales.resize(at(m * groups));
    for (int64_t i = 0; i < m * groups; ++i) {
      const int64_t token = i / groups, g = i % groups;
      float scale = static_cast<float>(uniform(1, 1000)) * 1e-3f;
      if (kind == Values::kExtreme) scale = token % 2 ? 6e4f : 1e-38f;
      if (kind == Values::kNan && token % 7 == 3 && g == groups / 2) scale = NAN;
      if (kind == Values::kNan && token % 7 == 5) scale = 0;
      if (kind == Values::kInfinite && token % 7 == 3 && g == groups / 2) scale = INFINITY;
      made.token_scales[at(i)] = made.stepped[at(g * stride + token)] = scale;
    }
    for (int64_t i = 0; i < n; ++i) {
      made.bias.push_back(static_cast<float>(uniform(-1000, 1000)) * 0.01f);
    }
    for (int64_t i = 0; i < m * n; ++i) {
      made.residual.push_back(static_cast<float>(uniform(-800, 800)) *
                              0.125f);  // exact in any type
    }
    return made;
  }

  Operands(int64_t m_, int64_t n_, int64_t k_, Values kind_, Made made)
      : m(m_),
        n(n_),
        k(k_),
        groups(group_count(k_)),
        kind(kind_),
        host_codes(std::move(made.a)),
        host_packed(std::move(made.packed)),
        row_scales(std::move(made.row_scales)),
        token_scales(std::move(made.token_scales)),
        sums(static_cast<size_t>(m_ * n_ * groups)),
        bias(std::move(made.bias)),
        residual(std::move(made.residual)),
        codes(host_codes),
        packed(host_packed),
        scales(made.stepped),
        tiled(made.tiled),
        bias_memory(bias) {
    flexq_kernels::group_sums_w6ax(sums.data(), host_codes.data(), host_packed.data(),
                                   {m, n, k, 8});
  }
};

}  // namespace flexq_test
