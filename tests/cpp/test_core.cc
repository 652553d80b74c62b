#include <cstring>

#include "ft/core/buffer.h"
#include "ft/core/data_format.h"
#include "ft/core/dtype.h"
#include "ft/core/error.h"
#include "ft/core/tensor.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

TEST(every_fp16_survives_a_round_trip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    if ((bits & 0x7c00u) == 0x7c00u && (bits & 0x3ffu) != 0) continue;  // NaN payloads may change
    EXPECT_EQ(from_float<Half>(to_float(half)).bits, half.bits);
  }
}

TEST(fp16_rounds_half_to_even_and_overflows_at_65520) {
  EXPECT_EQ(from_float<Half>(1.0f + 0.00048828125f).bits, 0x3c00);      // tie, to even
  EXPECT_EQ(from_float<Half>(1.0f + 3 * 0.00048828125f).bits, 0x3c02);  // tie, to even
  EXPECT_EQ(from_float<Half>(65519.996f).bits, 0x7bff);
  EXPECT_EQ(from_float<Half>(65520.0f).bits, 0x7c00);
  EXPECT_EQ(from_float<Half>(2.98023223876953125e-8f).bits, 0x0000);  // half of the least
}

TEST(a_failed_check_names_both_values) {
  EXPECT_THROW(FLEXQ_FT_CHECK_EQ(1 + 1, 3, "sum"), Error, "(2 vs 3): sum");
}

TEST(rows_of_a_tensor_share_its_memory) {
  Buffer buffer(DataType::kFp32, {4, 3}, MemoryKind::kWorkspace);
  Tensor tensor = buffer.tensor();
  tensor.data<float>()[5] = 7.0f;
  EXPECT_EQ(tensor.rows(1, 3).data<float>()[2], 7.0f);
  EXPECT_THROW(tensor.rows(2, 5), Error, "rows of [4, 3]");
  EXPECT_THROW(tensor.rows(-1, 2), Error, "rows of [4, 3]");
}

TEST(memory_is_counted_by_kind_and_given_back) {
  const size_t before = memory_in_use()[static_cast<int>(MemoryKind::kKvCache)];
  {
    Buffer buffer(1000, MemoryKind::kKvCache);
    EXPECT_EQ(memory_in_use()[static_cast<int>(MemoryKind::kKvCache)], before + 1000);
  }
  EXPECT_EQ(memory_in_use()[static_cast<int>(MemoryKind::kKvCache)], before);
}

TEST(buffers_of_a_region_lie_behind_each_other_and_outlive_it) {
  const size_t before = memory_in_use()[0];
  Buffer small, large, beyond;
  {
    MemoryRegion region(4096, MemoryKind::kWeights, Device::kCpu);
    EXPECT_EQ(memory_in_use()[0], before);  // nothing is held yet
    small = region.cut(DataType::kFp32, {3, 5});
    large = region.cut(DataType::kInt8, {2000});
    beyond = region.cut(DataType::kInt8, {2000});  // no room
    const Buffer last = region.cut(DataType::kInt8, {1000});
    EXPECT_EQ(static_cast<uint8_t*>(large.data()) - static_cast<uint8_t*>(small.data()), 256);
    EXPECT_EQ(static_cast<uint8_t*>(last.data()) - static_cast<uint8_t*>(large.data()), 2048);
    EXPECT_EQ(memory_in_use()[0], before + 60 + 2000 + 2000 + 1000);
  }
  EXPECT_EQ(memory_in_use()[0], before + 60 + 2000 + 2000);
  std::memset(small.data(), 1, small.bytes());
  std::memset(large.data(), 2, large.bytes());
  std::memset(beyond.data(), 3, beyond.bytes());
  const Buffer moved = std::move(large);
  small = Buffer();
  EXPECT_EQ(static_cast<const uint8_t*>(moved.data())[1999], 2);
  EXPECT_EQ(memory_in_use()[0], before + 2000 + 2000);
  EXPECT(moved.tensor().shape() == Shape({2000}));
}

TEST(int8_modes_name_schemes_both_ways) {
  Scheme scheme;
  EXPECT(scheme_of_int8_mode(5, &scheme) && scheme == Scheme::kW6Ax);
  EXPECT(!scheme_of_int8_mode(4, &scheme));
}
