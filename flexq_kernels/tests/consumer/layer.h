// A linear layer y [m, n] = x [m, k] · w [n, k]ᵀ, quantised and multiplied on the CPU.
#pragma once

#include <flexq_kernels/gemm.h>
#include <flexq_kernels/pack.h>
#include <flexq_kernels/quantize.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace fk = flexq_kernels;

struct Layer {
  fk::GemmProblem problem{3, 24, 300, 8};
  int64_t m = problem.m, n = problem.n, k = problem.k, groups = fk::group_count(k);
  std::vector<float> w, x;
  std::vector<uint8_t> packed;
  std::vector<uint16_t> scales;  // fp16 bits [groups, n], as products read them

  Layer() : w(n * k), x(m * k), packed(fk::packed_bytes(n, k)), scales(groups * n) {
    for (size_t i = 0; i < w.size(); ++i) w[i] = std::sin(static_cast<float>(i));
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<float>(i) * 0.7f);
    // Once per weight: six-bit codes, packed.
    std::vector<int8_t> codes(n * k);
    std::vector<uint16_t> row_scales(n * groups);
    if (fk::quantize_weight_int6(codes.data(), row_scales.data(), w.data(), n, k)) {
      throw std::invalid_argument("a weight that is not finite");
    }
    fk::scales_by_group(scales.data(), row_scales.data(), n, k);
    fk::pack_int6(packed.data(), codes.data(), n, k);
  }

  // Once per input: eight-bit codes, multiplied.
  std::vector<float> multiply() const {
    std::vector<int8_t> codes(m * groups * fk::kGroupSize);
    std::vector<float> code_scales(m * groups), y(m * n);
    fk::quantize_activations(codes.data(), code_scales.data(), x.data(), fk::FloatType::kFp32, m, k,
                             fk::kGroupSize, problem.act_bits);
    fk::gemm_w6ax(y.data(), {codes.data(), code_scales.data()}, {packed.data(), scales.data()},
                  nullptr, problem);
    return y;
  }
};
