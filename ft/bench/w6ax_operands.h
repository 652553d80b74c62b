// What a measurement of a W6Ax product needs on the device: weights in enough copies that none is
// in the cache when it is read again, activations and their quantiser, results.
#pragma once

#include <algorithm>
#include <cstdint>

#include "flexq_kernels/gpu/btc_gemm.h"
#include "flexq_kernels/gpu/candidate.h"
#include "flexq_kernels/gpu/quantize.h"
#include "ft/bench/w6ax_bench.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/gemm_tuner_gpu.h"

namespace flexq_ft {

namespace fk = flexq_kernels;
namespace fg = flexq_kernels::gpu;

constexpr int kMostRotations = 256;

inline Buffer device_buffer(DataType dtype, Shape shape) {
  return Buffer(dtype, shape, MemoryKind::kWorkspace, Device::kCuda);
}

inline Buffer random_buffer(DataType dtype, Shape shape, uint32_t seed, Stream stream) {
  Buffer out = device_buffer(dtype, shape);
  gpu::fill_random(out.tensor(), seed, stream);
  return out;
}

// Copies of so many bytes that cold_bytes lie between two readings of one.
inline int rotations_of(int64_t bytes, int64_t cold_bytes) {
  return static_cast<int>(std::clamp<int64_t>((cold_bytes + bytes - 1) / bytes, 2, kMostRotations));
}

// The operands of one problem, those of ours and of the libraries.
class Operands {
 public:
  Operands(const W6axBenchCase& problem, const W6axBenchOptions& options, Stream stream)
      : problem_{problem.m, problem.n, problem.k, problem.act_bits} {
    const int64_t bytes = fk::packed_bytes(problem.n, problem.k);
    rotations_ = rotations_of(bytes, options.cold_bytes);
    const int64_t groups = fk::group_count(problem.k), tiles = fk::row_tiles(problem.n);
    codes_ = random_buffer(DataType::kInt8, {rotations_, bytes}, 1, stream);
    scales_ =
        random_buffer(DataType::kFp16, {rotations_, tiles * groups * fk::kTileRows}, 2, stream);
    x_ = device_buffer(DataType::kFp16, {problem.m, problem.k});
    write_x(stream);
    x_codes_ = device_buffer(DataType::kInt8, {problem.m, groups * fk::kGroupSize});
    x_scales_ = device_buffer(DataType::kFp32, {groups, fg::scale_stride_of(problem.m)});
    for (Buffer* y : {&y_, &again_, &reference_}) {
      *y = device_buffer(DataType::kFp32, {problem.m, problem.n});
    }
    workspace_ =
        Buffer(fg::workspace_bytes(fg::current_device()), MemoryKind::kWorkspace, Device::kCuda);
    cuda::fill(workspace_.data(), 0, workspace_.bytes(), stream);
    const std::vector<std::string>& names = options.implementations;
    if (std::find(names.begin(), names.end(), "btc") != names.end()) {
      planes_ = device_buffer(DataType::kInt8, {rotations_, bytes});
      x_planes_ = device_buffer(DataType::kInt8, {1, static_cast<int64_t>(fg::btc_activation_bytes(
                                                         problem.m, problem.k, problem.act_bits))});
      for (int i = 0; i < rotations_; ++i) {
        fg::btc_pack_weight(static_cast<uint32_t*>(at(planes_, i)), weight(i).codes, problem.n,
                            problem.k, {stream.handle, false});
      }
    }
  }

  const fk::GemmProblem& problem() const { return problem_; }
  void* workspace() { return workspace_.data(); }
  int rotations() const { return rotations_; }
  Buffer& y() { return y_; }
  Buffer& again() { return again_; }
  Buffer& reference() { return reference_; }
  Buffer& float_reference() { return float_reference_; }  // of x as it is; made where it is wanted

  fg::Weight weight(int rotation) const {
    return {static_cast<const uint8_t*>(at(codes_, rotation % rotations_)),
            static_cast<const uint16_t*>(at(scales_, rotation % rotations_))};
  }
  fg::BtcWeight btc_weight(int rotation) const {
    return {static_cast<const uint32_t*>(at(planes_, rotation % rotations_)),
            weight(rotation).scales};
  }

  fg::ActivationBuffers activations(fg::CodeOrder order) {
    return {static_cast<int8_t*>(x_codes_.data()), static_cast<float*>(x_scales_.data()),
            fg::scale_stride_of(problem_.m), order};
  }
  // The floats, always the same.
  void write_x(Stream stream) { gpu::fill_random(x_.tensor(), 3, stream); }
  ConstTensor x() const { return x_.tensor(); }
  void quantize(fg::CodeOrder order, Stream stream) {
    fg::quantize_activations(activations(order), x_.data(), fk::FloatType::kFp16, problem_.m,
                             problem_.k, problem_.act_bits, {stream.handle, false});
  }
  fg::BtcActivations btc_activations(Stream stream) {
    quantize(fg::CodeOrder::kNatural, stream);
    auto* planes = static_cast<uint32_t*>(x_planes_.data());
    fg::btc_pack_activations(planes, activations(fg::CodeOrder::kNatural).view(), problem_.m,
                             problem_.k, problem_.act_bits, {stream.handle, false});
    return btc_activations();
  }
  fg::BtcActivations btc_activations() const {
    return {static_cast<const uint32_t*>(x_planes_.data()),
            static_cast<const float*>(x_scales_.data()), fg::scale_stride_of(problem_.m)};
  }

 private:
  // Row i of a buffer [rotations, row].
  static void* at(const Buffer& buffer, int64_t i) { return buffer.tensor().rows(i, i + 1).raw(); }

  fk::GemmProblem problem_;
  int rotations_ = 0;
  Buffer codes_, scales_, planes_;            // of the weights
  Buffer x_, x_codes_, x_scales_, x_planes_;  // of the activations
  Buffer y_, again_, reference_, float_reference_;
  Buffer workspace_;
};

}  // namespace flexq_ft
