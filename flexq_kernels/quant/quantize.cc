// The quantisers: checks and dispatch.
#include "flexq_kernels/quantize.h"

#include <atomic>
#include <cmath>

#include "flexq_kernels/check.h"
#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quant/quantize_cpu.h"

namespace flexq_kernels {

namespace {

void check_matrix(const char* what, int64_t rows, int64_t k, const void* codes, const void* scales,
                  const void* values) {
  FLEXQ_CHECK(rows >= 0 && rows <= kMaxExtent && k >= 1 && k <= kMaxExtent, "cannot quantise ",
              what, " [", rows, ", ", k, "]: rows must be 0 … ", kMaxExtent, ", k 1 … ",
              kMaxExtent);
  FLEXQ_CHECK(rows == 0 || (codes != nullptr && scales != nullptr && values != nullptr), what, " [",
              rows, ", ", k, "] without memory for values, codes or scales");
}

// The first element, row by row, that is not finite or whose magnitude / divisor passes `largest`.
WeightFault first_fault(const float* w, int64_t n, int64_t k, float divisor, float largest) {
  for (int64_t i = 0; i < n * k; ++i) {
    if (!(std::fabs(w[i]) / divisor <= largest)) return {i / k, i % k, w[i]};
  }
  return {};
}

template <typename QuantizeRows>
bool quantize_rows(int64_t n, int64_t k, const QuantizeRows& quantize) {
  std::atomic<bool> sound{true};
  parallel_ranges(n, n * k, [&](int64_t begin, int64_t end) {
    if (!quantize(begin, end)) sound.store(false, std::memory_order_relaxed);
  });
  return sound.load();
}

}  // namespace

WeightFault quantize_weight_int6(int8_t* codes, uint16_t* scales, const float* w, int64_t n,
                                 int64_t k) {
  check_matrix("a weight", n, k, codes, scales, w);
  const auto rows = FLEXQ_ISA_PICK(quantize_weight_int6_rows);
  const bool sound = quantize_rows(
      n, k, [&](int64_t begin, int64_t end) { return rows(codes, scales, w, k, begin, end); });
  return sound ? WeightFault{} : first_fault(w, n, k, 31.0f, 65504.0f);
}

WeightFault quantize_weight_int8(int8_t* codes, float* scales, const float* w, int64_t n,
                                 int64_t k) {
  check_matrix("a weight", n, k, codes, scales, w);
  const auto rows = FLEXQ_ISA_PICK(quantize_weight_int8_rows);
  const bool sound = quantize_rows(
      n, k, [&](int64_t begin, int64_t end) { return rows(codes, scales, w, k, begin, end); });
  return sound ? WeightFault{} : first_fault(w, n, k, 1.0f, 3.402823466e38f);
}

void quantize_activations(int8_t* codes, float* scales, const void* x, FloatType type, int64_t m,
                          int64_t k, int64_t group, int act_bits, float static_scale) {
  check_matrix("activations", m, k, codes, scales, x);
  FLEXQ_CHECK(act_bits == 6 || act_bits == 8, "activations [", m, ", ", k, "] to ", act_bits,
              " bits: only 6 and 8 are defined");
  FLEXQ_CHECK(group >= 1 && group <= kMaxExtent, "activations [", m, ", ", k, "] in groups of ",
              group, ": a group holds 1 … ", kMaxExtent, " values");
  FLEXQ_CHECK(static_scale == 0.0f || (static_scale >= 0x1p-100f && std::isfinite(static_scale)),
              "activations [", m, ", ", k, "] with a static scale of ", static_scale,
              ": it must be finite and at least 2^-100");
  const ActivationQuantizer quantizer{codes, scales, x, type, k, group, act_bits, static_scale};
  const auto rows = FLEXQ_ISA_PICK(quantize_activation_rows);
  parallel_ranges(m, m * k, [&](int64_t begin, int64_t end) { rows(quantizer, begin, end); });
}

}  // namespace flexq_kernels
