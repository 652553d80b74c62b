// RowOrder: where the rows of a linear's weight lie, and with them its scales, its bias and the
// columns of its product.
//
// The weight of a gated feed-forward has two parts, gate and up, a row of each for every channel.
// On the CPU they lie one after the other. On a GPU they lie in bands of eight rows, in turn:
//   gate 0 … 7 | up 0 … 7 | gate 8 … 15 | up 8 … 15 | …
// so a tile of 16 rows has whole channels, gate and up eight rows apart: a tensor core's
// accumulator has both in one lane, where they meet without an exchange. Files know nothing of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flexq_ft {

constexpr int kBandRows = 8;

struct RowOrder {
  // Rows of either part, a multiple of kBandRows; 0: rows lie as they are given, part after part.
  int64_t paired = 0;

  // Where the row lies that is given as number `row`. Rows of a band stay side by side.
  constexpr int64_t place(int64_t row) const {
    if (paired == 0) return row;
    const int64_t part = row < paired ? 0 : 1, channel = row - part * paired;
    return channel + channel / kBandRows * kBandRows + part * kBandRows;
  }

  // The number of the row that lies at `placed`.
  constexpr int64_t given(int64_t placed) const {
    if (paired == 0) return placed;
    const int64_t band = placed / kBandRows;
    return band % 2 * paired + band / 2 * kBandRows + placed % kBandRows;
  }

  // values [count, n], one for each of n rows: from the order in which they are given to this one.
  template <typename T>
  void arrange(T* values, int64_t count, int64_t n) const {
    rearrange(values, count, n,
              [&](const T* from, T* to, int64_t row) { to[place(row)] = from[row]; });
  }
  // And back.
  template <typename T>
  void restore(T* values, int64_t count, int64_t n) const {
    rearrange(values, count, n,
              [&](const T* from, T* to, int64_t row) { to[row] = from[place(row)]; });
  }

 private:
  template <typename T, typename Move>
  void rearrange(T* values, int64_t count, int64_t n, const Move& move) const {
    if (paired == 0) return;
    std::vector<T> before(static_cast<size_t>(n));
    for (int64_t i = 0; i < count; ++i, values += n) {
      before.assign(values, values + n);
      for (int64_t row = 0; row < n; ++row) move(before.data(), values, row);
    }
  }
};

}  // namespace flexq_ft
