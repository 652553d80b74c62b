// A linear layer with the installed library, from float weights to outputs, on the CPU.
#include <flexq_kernels/gemm.h>
#include <flexq_kernels/pack.h>
#include <flexq_kernels/quantize.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace fk = flexq_kernels;

int main() {
  const fk::GemmProblem problem{3, 24, 300, 8};  // y [3, 24] = x [3, 300] · w [24, 300]ᵀ
  const int64_t m = problem.m, n = problem.n, k = problem.k, groups = fk::group_count(k);
  std::vector<float> w(n * k), x(m * k);
  for (size_t i = 0; i < w.size(); ++i) w[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<float>(i) * 0.7f);

  // Once per weight: six-bit codes, packed; scales as the product reads them, [groups, n].
  std::vector<int8_t> codes(n * k);
  std::vector<uint16_t> row_scales(n * groups), scales(groups * n);
  if (fk::quantize_weight_int6(codes.data(), row_scales.data(), w.data(), n, k)) return 1;
  for (int64_t i = 0; i < n * groups; ++i) scales[i % groups * n + i / groups] = row_scales[i];
  std::vector<uint8_t> packed(fk::packed_bytes(n, k));
  fk::pack_int6(packed.data(), codes.data(), n, k);

  // Once per input: eight-bit codes, multiplied.
  std::vector<int8_t> x_codes(m * groups * fk::kGroupSize);
  std::vector<float> x_scales(m * groups), y(m * n);
  fk::quantize_activations(x_codes.data(), x_scales.data(), x.data(), fk::FloatType::kFp32, m, k,
                           fk::kGroupSize, problem.act_bits);
  fk::gemm_w6ax(y.data(), {x_codes.data(), x_scales.data()}, {packed.data(), scales.data()},
                nullptr, problem);

  double error = 0, size = 0;
  for (int64_t i = 0; i < m * n; ++i) {
    double want = 0;
    for (int64_t j = 0; j < k; ++j) want += double{x[i / n * k + j]} * w[i % n * k + j];
    error += (y[i] - want) * (y[i] - want);
    size += want * want;
  }
  std::printf("relative error of the product: %.4f\n", std::sqrt(error / size));
  return error < 0.01 * size ? 0 : 1;  // six bits of weight
}
