// Where the rows of a gated feed-forward's weight lie, and the ops that bring them there.
#include "ft/core/row_order.h"

#include <algorithm>
#include <vector>

#include "flexq_kernels/pack.h"
#include "ft/core/buffer.h"
#include "ft/kernels/repack.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

TEST(bands_of_gate_and_up_lie_in_turn) {
  const RowOrder order{24};
  const std::vector<int64_t> gates = {0, 7, 8, 15, 16, 23}, places = {0, 7, 16, 23, 32, 39};
  for (size_t i = 0; i < gates.size(); ++i) {
    EXPECT_EQ(order.place(gates[i]), places[i]);
    EXPECT_EQ(order.place(24 + gates[i]), places[i] + 8);
  }
  for (int64_t row = 0; row < 48; ++row) EXPECT_EQ(order.given(order.place(row)), row);
  for (int64_t row = 0; row < 48; ++row) EXPECT_EQ(RowOrder{}.place(row), row);
}

TEST(values_of_rows_are_arranged_and_restored) {
  const RowOrder order{16};
  std::vector<int> values(2 * 32);
  for (int i = 0; i < 64; ++i) values[static_cast<size_t>(i)] = i;
  const std::vector<int> given = values;
  order.arrange(values.data(), 2, 32);
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t row = 0; row < 32; ++row) {
      EXPECT_EQ(values[static_cast<size_t>(i * 32 + order.place(row))], i * 32 + row);
    }
  }
  order.restore(values.data(), 2, 32);
  EXPECT(values == given);
}

TEST(repacked_rows_go_to_their_places) {
  const RowOrder order{40};
  const int64_t n = 80, k = 3, first = 37, rows = 11;  // of both parts
  for (const bool row_major_nk : {true, false}) {
    const Buffer source(DataType::kFp32, row_major_nk ? Shape{rows, k} : Shape{k, rows},
                        MemoryKind::kWorkspace);
    const Buffer target(DataType::kFp32, {n, k}, MemoryKind::kWorkspace);
    auto* const from = static_cast<float*>(source.data());
    auto* const to = static_cast<float*>(target.data());
    std::fill(to, to + n * k, -1.0f);
    for (int64_t i = 0; i < rows * k; ++i) from[i] = static_cast<float>(i);
    invokeRepackRows(target.tensor(), source.tensor(), first, 0, row_major_nk, order, {});
    int64_t written = 0;
    for (int64_t row = 0; row < n; ++row) {
      const int64_t r = order.given(row) - first;
      for (int64_t i = 0; i < k; ++i) {
        const bool mine = r >= 0 && r < rows;
        const int64_t at = row_major_nk ? r * k + i : i * rows + r;
        EXPECT_EQ(to[row * k + i], mine ? static_cast<float>(at) : -1.0f);
        written += mine ? 1 : 0;
      }
    }
    EXPECT_EQ(written, rows * k);
  }
}

TEST(tiles_of_pairs_are_those_of_codes_in_pairs) {
  for (const int64_t paired : {8, 40, 48}) {  // 8, 40: gate and up meet inside a tile
    for (const int64_t k : {5, 128, 300}) {
      for (const int64_t step : {1, 4, 1000}) {
        const int64_t n = 2 * paired, bytes = flexq_kernels::packed_bytes(n, k);
        const RowOrder order{paired};
        std::vector<int8_t> codes(static_cast<size_t>(n * k)), arranged(codes.size());
        for (size_t i = 0; i < codes.size(); ++i) {
          codes[i] = static_cast<int8_t>(static_cast<int>(i * 2654435761u >> 7 & 63) - 32);
        }
        for (int64_t row = 0; row < n; ++row) {
          std::copy_n(&codes[static_cast<size_t>(row * k)], k,
                      &arranged[static_cast<size_t>(order.place(row) * k)]);
        }
        std::vector<uint8_t> given(static_cast<size_t>(bytes)), want(given.size());
        std::vector<uint8_t> got(given.size(), 0xa5);
        flexq_kernels::pack_int6(given.data(), codes.data(), n, k);
        flexq_kernels::pack_int6(want.data(), arranged.data(), n, k);
        const int64_t tiles = bytes / flexq_kernels::kTileBytes;
        for (int64_t first = 0; first < tiles; first += step) {
          const int64_t count = std::min(step, tiles - first);
          const ConstTensor block(&given[static_cast<size_t>(first * flexq_kernels::kTileBytes)],
                                  DataType::kUint8, {count, flexq_kernels::kTileBytes});
          invokePlaceTiles(Tensor(got.data(), DataType::kUint8, {bytes}), block, first, k, order,
                           {});
        }
        EXPECT(got == want);
      }
    }
  }
}

TEST(orders_that_do_not_fit_are_refused) {
  const Buffer target(DataType::kFp32, {32, 1}, MemoryKind::kWorkspace);
  for (const int64_t paired : {8, 15}) {
    EXPECT_THROW(invokeRepackRows(target.tensor(), target.tensor(), 0, 0, true, {paired}, {}),
                 Error, "pairs");
  }
}
