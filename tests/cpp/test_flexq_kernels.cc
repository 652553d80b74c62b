// The FlexQ library through its own headers: what no binding can show, such as memory beyond the
// ends of buffers, thread counts and the exceptions themselves.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "flexq_kernels/activation_order.h"
#include "flexq_kernels/cpu/isa.h"
#include "flexq_kernels/gemm.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quantize.h"
#include "tests/cpp/check.h"

using namespace flexq_kernels;

namespace {

// A buffer between two guard bands; all of it starts as a pattern that reads as NaN or nonsense.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count), bytes_(2 * kBand + count * sizeof(T), kPoison) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kBand); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kBand); }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) { return data()[i]; }

  bool bands_intact() const {
    for (size_t i = 0; i < kBand; ++i) {
      if (bytes_[i] != kPoison || bytes_[bytes_.size() - 1 - i] != kPoison) return false;
    }
    return true;
  }
  bool operator==(const Guarded& other) const { return bytes_ == other.bytes_; }

 private:
  static constexpr size_t kBand = 4096;
  static constexpr uint8_t kPoison = 0xff;
  int64_t count_;
  std::vector<uint8_t> bytes_;
};

struct Linear {
  GemmProblem problem;
  int64_t groups;
  Guarded<float> x;
  Guarded<int8_t> a_codes;
  Guarded<float> a_scales;
  Guarded<uint8_t> packed;
  Guarded<uint16_t> disk_scales;
  Guarded<float> bias;
  Guarded<float> y;

  explicit Linear(const GemmProblem& p)
      : problem(p),
        groups(group_count(p.k)),
        x(p.m * p.k),
        a_codes(p.m * groups * kGroupSize),
        a_scales(p.m * groups),
        packed(packed_bytes(p.n, p.k)),
        disk_scales(groups * p.n),
        bias(p.n),
        y(p.m * p.n) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < x.size(); ++i) x[i] = normal(random);
    for (int64_t i = 0; i < bias.size(); ++i) bias[i] = normal(random);
    Guarded<float> w(p.n * p.k);
    for (int64_t i = 0; i < w.size(); ++i) w[i] = normal(random);
    Guarded<int8_t> codes(p.n * p.k);
    Guarded<uint16_t> scales(p.n * groups);
    EXPECT(!quantize_weight_int6(codes.data(), scales.data(), w.data(), p.n, p.k));
    for (int64_t n = 0; n < p.n; ++n) {
      for (int64_t g = 0; g < groups; ++g) disk_scales[g * p.n + n] = scales[n * groups + g];
    }
    pack_int6(packed.data(), codes.data(), p.n, p.k);
    Guarded<int8_t> unpacked(p.n * p.k);
    unpack_int6(unpacked.data(), packed.data(), p.n, p.k);
    EXPECT(unpacked == codes);
    EXPECT(codes.bands_intact() && scales.bands_intact() && packed.bands_intact());
  }

  PackedWeight weight() const { return {packed.data(), disk_scales.data()}; }

  void run() {
    if (problem.act_bits == 16) {
      gemm_w6a16(y.data(), x.data(), FloatType::kFp32, weight(), bias.data(), problem);
    } else {
      quantize_activations(a_codes.data(), a_scales.data(), x.data(), FloatType::kFp32, problem.m,
                           problem.k, kGroupSize, problem.act_bits);
      gemm_w6ax(y.data(), {a_codes.data(), a_scales.data()}, weight(), bias.data(), problem);
    }
  }
};

void for_each_isa(const std::function<void()>& body) {
  const Isa before = active_isa();
  for (Isa isa : available_isas()) {
    EXPECT(set_isa(isa));
    body();
  }
  set_isa(before);
}

}  // namespace

TEST(nothing_is_written_or_left_unwritten_beyond_a_buffer) {
  for_each_isa([] {
    for (int bits : {6, 8, 16}) {
      for (int64_t n : {1, 15, 16, 33}) {
        for (int64_t k : {1, 127, 128, 200}) {
          Linear linear({9, n, k, bits});
          linear.run();
          EXPECT(linear.y.bands_intact());
          EXPECT(linear.a_codes.bands_intact() && linear.a_scales.bands_intact());
          bool written = true;
          for (int64_t i = 0; i < linear.y.size(); ++i) written &= std::isfinite(linear.y[i]);
          EXPECT(written);
        }
      }
    }
  });
}

TEST(guard_bands_of_the_group_sums) {
  for_each_isa([] {
    Linear linear({5, 17, 200, 8});
    linear.run();
    Guarded<int32_t> sums(5 * 17 * 2);
    group_sums_w6ax(sums.data(), linear.a_codes.data(), linear.packed.data(), linear.problem);
    EXPECT(sums.bands_intact());
    bool in_range = true;
    for (int64_t i = 0; i < sums.size(); ++i) in_range &= std::abs(sums[i]) <= 1 << 19;
    EXPECT(in_range);
  });
}

#if defined(_OPENMP)
TEST(results_do_not_depend_on_the_number_of_threads) {
  const int before = omp_get_max_threads();
  for_each_isa([] {
    for (int bits : {6, 8, 16}) {
      omp_set_num_threads(1);
      Linear one({21, 700, 1000, bits});
      one.run();
      for (int threads : {2, 3, 7}) {
        omp_set_num_threads(threads);
        Linear many(one.problem);
        many.run();
        EXPECT(many.y == one.y);
        EXPECT(many.a_codes == one.a_codes && many.a_scales == one.a_scales);
        EXPECT(many.packed == one.packed);
      }
    }
  });
  omp_set_num_threads(before);
}
#endif

TEST(a_call_repeated_is_bit_equal_whatever_ran_between) {
  for_each_isa([] {
    Linear small({3, 40, 300, 8}), large({40, 100, 1000, 8});
    small.run();
    const Guarded<float> first = small.y;
    large.run();
    small.run();
    EXPECT(small.y == first);
  });
}

TEST(a_problem_is_refused_with_all_its_numbers) {
  const GemmProblem negative{-1, 16, 128, 6}, empty{1, 0, 128, 6}, odd{1, 16, 128, 7};
  EXPECT_THROW(negative.validate(), std::invalid_argument,
               "GemmProblem{m=-1, n=16, k=128, abits=6, group=128}: m must be");
  EXPECT_THROW(empty.validate(), std::invalid_argument, "n=0");
  EXPECT_THROW(odd.validate(), std::invalid_argument, "act_bits must be 6, 8 or 16");
  EXPECT_THROW((GemmProblem{1, 1, kMaxExtent + 1, 6}).validate(), std::invalid_argument,
               "k=2147483648");
}

TEST(the_wrong_gemm_for_the_bits_is_refused) {
  Linear linear({2, 16, 128, 8});
  GemmProblem floats = linear.problem;
  floats.act_bits = 16;
  EXPECT_THROW(gemm_w6ax(linear.y.data(), {linear.a_codes.data(), linear.a_scales.data()},
                         linear.weight(), nullptr, floats),
               std::invalid_argument, "16 bit is gemm_w6a16");
  EXPECT_THROW(gemm_w6a16(linear.y.data(), linear.x.data(), FloatType::kFp32, linear.weight(),
                          nullptr, linear.problem),
               std::invalid_argument, "abits=8");
}

TEST(a_null_operand_is_named) {
  Linear linear({2, 16, 128, 8});
  EXPECT_THROW(gemm_w6ax(nullptr, {}, {}, nullptr, linear.problem), std::invalid_argument,
               "GemmProblem{m=2, n=16, k=128, abits=8, group=128}: output: a null pointer");
  PackedWeight weight = linear.weight();
  weight.scales = nullptr;
  EXPECT_THROW(gemm_w6ax(linear.y.data(), {linear.a_codes.data(), linear.a_scales.data()}, weight,
                         nullptr, linear.problem),
               std::invalid_argument, "weight scales: a null pointer");
}

TEST(a_weight_fault_has_its_place) {
  for_each_isa([] {
    std::vector<float> w(20 * 150, 1.0f);
    w[13 * 150 + 149] = std::numeric_limits<float>::quiet_NaN();
    std::vector<int8_t> codes(w.size());
    std::vector<uint16_t> scales(40);
    const WeightFault fault = quantize_weight_int6(codes.data(), scales.data(), w.data(), 20, 150);
    EXPECT_EQ(fault.row, 13);
    EXPECT_EQ(fault.column, 149);
    EXPECT(std::isnan(fault.value));
  });
}

TEST(a_bad_extent_is_refused_before_any_memory_is_touched) {
  EXPECT_THROW(pack_int6(nullptr, nullptr, 16, 0), std::invalid_argument, "[16, 0]");
  EXPECT_THROW(unpack_int6(nullptr, nullptr, 16, 128), std::invalid_argument, "without memory");
  EXPECT_THROW(quantize_activations(nullptr, nullptr, nullptr, FloatType::kFp32, 1, 128, 0, 8),
               std::invalid_argument, "without memory");
  float x = 1.0f, scale;
  int8_t code;
  EXPECT_THROW(quantize_activations(&code, &scale, &x, FloatType::kFp32, 1, 1, 0, 8),
               std::invalid_argument, "groups of 0");
  for (const float scale_of_all : {-1.0f, 1e-38f, INFINITY, NAN}) {
    EXPECT_THROW(
        quantize_activations(&code, &scale, &x, FloatType::kFp32, 1, 1, 1, 8, scale_of_all),
        std::invalid_argument, "static scale");
  }
}

TEST(tiled_scales_lie_beside_their_tile_with_zeros_past_n) {
  for (int64_t n : {1, 15, 16, 17, 100}) {
    for (int64_t k : {1, 128, 200, 1000}) {
      const int64_t groups = group_count(k);
      Guarded<uint16_t> scales(groups * n), tiled(tiled_scale_count(n, k));
      for (int64_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<uint16_t>(i + 1);
      tile_scales(tiled.data(), scales.data(), n, k);
      EXPECT(tiled.bands_intact());
      int wrong = 0;
      for (int64_t row = 0; row < row_tiles(n) * kTileRows; ++row) {
        for (int64_t g = 0; g < groups; ++g) {
          const uint16_t got = tiled[(row / kTileRows * groups + g) * kTileRows + row % kTileRows];
          wrong += got != (row < n ? scales[g * n + row] : 0);
        }
      }
      EXPECT_EQ(wrong, 0);
    }
  }
  EXPECT_THROW(tile_scales(nullptr, nullptr, 16, 128), std::invalid_argument, "without memory");
  tile_scales(nullptr, nullptr, 0, 128);
}

TEST(scales_by_group_are_the_rows_transposed) {
  const int64_t n = 17, k = 300, groups = group_count(k);
  Guarded<uint16_t> rows(n * groups), scales(groups * n);
  for (int64_t i = 0; i < n * groups; ++i) rows[i] = static_cast<uint16_t>(i);
  scales_by_group(scales.data(), rows.data(), n, k);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t row = 0; row < n; ++row) {
      EXPECT_EQ(int{scales[g * n + row]}, static_cast<int>(row * groups + g));
    }
  }
  EXPECT(scales.bands_intact());
  scales_by_group(nullptr, nullptr, 0, 128);
  EXPECT_THROW(scales_by_group(nullptr, nullptr, 16, 128), std::invalid_argument, "without memory");
}

TEST(fragment_order_gives_a_lane_its_operands_in_a_row) {
  Guarded<int8_t> natural(3 * kGroupSize), fragment(natural.size()), back(natural.size());
  for (int64_t i = 0; i < natural.size(); ++i) natural[i] = static_cast<int8_t>(i % 251);
  to_fragment_order(fragment.data(), natural.data(), 3);
  to_natural_order(back.data(), fragment.data(), 3);
  EXPECT(back == natural && fragment.bands_intact());
  int wrong = 0;
  for (int s = 0; s < 4; ++s) {      // step of mma.m16n8k32
    for (int t = 0; t < 4; ++t) {    // lane of a quad
      for (int i = 0; i < 8; ++i) {  // byte of b0, b1
        const int k = 32 * s + i / 4 * 16 + 4 * t + i % 4;
        wrong += fragment[kGroupSize + 32 * t + 8 * s + i] != natural[kGroupSize + k];
      }
    }
  }
  EXPECT_EQ(wrong, 0);
  to_fragment_order(natural.data(), natural.data(), 3);
  EXPECT(natural == fragment);
  EXPECT_THROW(to_fragment_order(nullptr, nullptr, 1), std::invalid_argument, "without memory");
}
