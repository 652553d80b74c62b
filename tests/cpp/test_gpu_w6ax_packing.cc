// What makes the operands of a product on a GPU: pack, unpack, tiled scales and the quantiser, each
// against its CPU twin, bit by bit. --small: fewer and smaller problems, for compute-sanitizer.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/pack.h"
#include "flexq_kernels/gpu/quantize.h"
#include "flexq_kernels/quantize.h"
#include "tests/cpp/w6ax_case.h"

using namespace flexq_test;
namespace gpu = flexq_kernels::gpu;
using gpu::CodeOrder;

namespace {

constexpr CodeOrder kOrders[] = {CodeOrder::kNatural, CodeOrder::kFragment};
constexpr FloatType kTypes[] = {FloatType::kFp32, FloatType::kFp16, FloatType::kBf16};

}  // namespace

// ---- packing ----

namespace {

void check_packing(int64_t n, int64_t k) {
  const WeightCase w(n, k, Values::kRandom, static_cast<uint64_t>(n * 1000 + k));
  const std::string name = "[" + std::to_string(n) + ", " + std::to_string(k) + "]";
  const DeviceArray<int8_t> codes(w.codes);
  const DeviceArray<uint8_t> packed(static_cast<int64_t>(w.packed.size()));
  gpu::pack_int6(packed.data(), codes.data(), n, k, plain_launch());
  expect_same(packed.fetch("packed"), w.packed, "pack_int6 " + name);
  const DeviceArray<int8_t> unpacked(n * k);
  gpu::unpack_int6(unpacked.data(), packed.data(), n, k, dependent_launch());
  expect_same(unpacked.fetch("unpacked"), w.codes, "unpack_int6 " + name);
  const DeviceArray<uint16_t> scales(w.scales), tiled(w.gpu_scales->size());
  gpu::tile_scales(tiled.data(), scales.data(), n, k, plain_launch());
  expect_same(tiled.fetch("tiled"), w.gpu_scales->fetch(), "tile_scales " + name);
}

}  // namespace

TEST(packed_bytes_and_tiled_scales_are_those_of_the_cpu) {
  if (nothing_to_test()) return;
  for (const int64_t n : {1, 15, 16, 17, 40, 100}) {
    for (const int64_t k : {1, 64, 127, 128, 130, 200, 384, 1000}) {
      if (small() && n > 17) continue;
      check_packing(n, k);
    }
  }
  if (!small()) check_packing(11008, 4096);
}

TEST(any_bytes_survive_unpack_and_pack) {
  if (nothing_to_test()) return;
  constexpr int64_t kN = 48, kK = 384;
  Random random(5);
  std::vector<uint8_t> bytes(static_cast<size_t>(flexq_kernels::packed_bytes(kN, kK)));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  const DeviceArray<uint8_t> packed(bytes), again(packed.size());
  const DeviceArray<int8_t> codes(kN * kK);
  gpu::unpack_int6(codes.data(), packed.data(), kN, kK, plain_launch());
  gpu::pack_int6(again.data(), codes.data(), kN, kK, dependent_launch());
  expect_same(again.fetch("packed again"), bytes, "pack(unpack(p))");
}

// ---- the quantiser ----

namespace {

// Values of a type, some of them awkward.
std::vector<uint8_t> awkward_values(FloatType type, int64_t m, int64_t k, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> out;
  for (int64_t i = 0; i < m * k; ++i) {
    const int64_t group = i / k * flexq_kernels::group_count(k) + i % k / kGroupSize;
    // One kind of group after the other: ties, zeros, tiny, the edge of 2^-100, NaN, infinity.
    const int kind = static_cast<int>(group % 11);
    float value = (2 * random.unit() - 1) * 3;
    if (kind == 1) value = static_cast<float>(random.below(63) - 31) * 0.5f;
    if (kind == 2) value = 0.0f;
    if (kind == 3) value *= 1e-38f;
    if (kind == 4) value = std::copysign(random.below(2) ? 0x1p-100f : 0x1.fffffep-101f, value);
    if (kind == 5 && random.below(40) == 0) value = std::numeric_limits<float>::quiet_NaN();
    if (kind == 6 && random.below(40) == 0) value = -std::numeric_limits<float>::infinity();
    if (kind == 7) value *= 1e-42f;
    if (kind == 8) value *= 6e4f;
    if (kind == 9) value = static_cast<float>(random.below(255) - 127) + 0.5f;
    uint8_t bytes[4];
    const uint16_t half = half_bits(value);
    const __nv_bfloat16 bf16 = __float2bfloat16_rn(value);
    std::memcpy(bytes,
                type == FloatType::kFp32   ? static_cast<const void*>(&value)
                : type == FloatType::kFp16 ? static_cast<const void*>(&half)
                                           : static_cast<const void*>(&bf16),
                static_cast<size_t>(bytes_of(type)));
    out.insert(out.end(), bytes, bytes + bytes_of(type));
  }
  return out;
}

void check_quantizer(FloatType type, int64_t m, int64_t k, int act_bits) {
  const int64_t groups = flexq_kernels::group_count(k), stride = gpu::scale_stride_of(m);
  const std::vector<uint8_t> x = awkward_values(type, m, k, static_cast<uint64_t>(m * 7919 + k));
  std::vector<int8_t> codes(static_cast<size_t>(m * groups * kGroupSize));
  std::vector<float> scales(static_cast<size_t>(m * groups));
  flexq_kernels::quantize_activations(codes.data(), scales.data(), x.data(), type, m, k, kGroupSize,
                                      act_bits);
  std::vector<float> by_group(static_cast<size_t>(groups * stride));
  for (int64_t i = 0; i < m * groups; ++i) {
    by_group[static_cast<size_t>(i % groups * stride + i / groups)] =
        scales[static_cast<size_t>(i)];
  }
  const DeviceArray<uint8_t> gpu_x(x);
  for (const CodeOrder order : kOrders) {
    if (order == CodeOrder::kFragment) {
      flexq_kernels::to_fragment_order(codes.data(), codes.data(), m * groups);
    }
    const DeviceArray<int8_t> gpu_codes(static_cast<int64_t>(codes.size()));
    const DeviceArray<float> gpu_scales(groups * stride);
    gpu::quantize_activations({gpu_codes.data(), gpu_scales.data(), stride, order}, gpu_x.data(),
                              type, m, k, act_bits, dependent_launch());
    std::ostringstream name;
    name << "quantize_activations " << name_of(type) << " [" << m << ", " << k << "] to "
         << act_bits << " bits, order " << static_cast<int>(order);
    expect_same(gpu_codes.fetch("codes"), codes, name.str() + ", codes");
    expect_same(gpu_scales.fetch("scales"), by_group, name.str() + ", scales");
  }
}

}  // namespace

TEST(quantised_activations_are_those_of_the_cpu) {
  if (nothing_to_test()) return;
  const std::vector<int64_t> tokens =
      small() ? std::vector<int64_t>{1, 5} : std::vector<int64_t>{1, 2, 3, 5, 16, 17, 33, 257};
  for (const FloatType type : kTypes) {
    for (const int64_t m : tokens) {
      for (const int64_t k : {1, 7, 64, 127, 128, 130, 200, 1000, 1408, 4096, 28672}) {
        if (m * k > (small() ? 8000 : 1 << 21)) continue;
        for (const int act_bits : {6, 8}) check_quantizer(type, m, k, act_bits);
      }
    }
  }
}

TEST(a_scale_stride_may_be_longer) {
  if (nothing_to_test()) return;
  const int64_t m = 3, k = 200, stride = 12;
  const std::vector<uint8_t> x = awkward_values(FloatType::kFp32, m, k, 3);
  const DeviceArray<uint8_t> gpu_x(x);
  const DeviceArray<int8_t> codes(m * 256);
  const DeviceArray<float> scales(2 * stride);
  gpu::quantize_activations({codes.data(), scales.data(), stride, CodeOrder::kNatural},
                            gpu_x.data(), FloatType::kFp32, m, k, 8, plain_launch());
  std::vector<int8_t> want_codes(m * 256);
  std::vector<float> want(m * 2);
  flexq_kernels::quantize_activations(want_codes.data(), want.data(), x.data(), FloatType::kFp32, m,
                                      k, kGroupSize, 8);
  expect_same(codes.fetch(), want_codes, "codes");
  const std::vector<float> got = scales.fetch();
  for (int64_t g = 0; g < 2; ++g) {
    const auto of = [&](int64_t i) { return want[static_cast<size_t>(2 * i + g)]; };
    std::vector<float> row = {of(0), of(1), of(2), 0.0f};
    row.resize(stride, got[4]);
    expect_same(std::vector<float>(got.begin() + g * stride, got.begin() + (g + 1) * stride), row,
                "scales");
  }
  EXPECT(std::isnan(got[4]));  // still the poison
}
