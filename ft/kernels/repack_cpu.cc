#include <cstring>
#include <type_traits>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "ft/kernels/tile_halves.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

// The same type is a copy, NaNs and all.
template <typename To, typename From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else {
    return from_float<To>(to_float(value));
  }
}

template <typename To, typename From>
void repack(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
            RowOrder order) {
  const int64_t k = dst.dim(1);
  const From* from = static_cast<const From*>(src.raw());
  To* to = static_cast<To*>(dst.raw()) + column;
  if (row_major_nk && order.paired == 0) {
    flexq_kernels::parallel_ranges(src.count(), src.count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[row * k + i] = convert<To>(from[i]);
    });
    return;
  }
  if (row_major_nk) {
    flexq_kernels::parallel_ranges(src.dim(0), src.count(), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        To* const placed = to + order.place(row + r) * k;
        for (int64_t i = 0; i < k; ++i) placed[i] = convert<To>(from[r * k + i]);
      }
    });
    return;
  }
  const int64_t columns = src.dim(0);
  const int64_t rows = src.dim(1);
  flexq_kernels::parallel_ranges(rows, src.count(), [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t r = begin; r < end; ++r) {
        to[order.place(row + r) * k + i] = convert<To>(from[i * rows + r]);
      }
    }
  });
}

}  // namespace

void repack_rows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                 RowOrder order) {
  if (size_of(dst.dtype()) == 1) {
    return repack<int8_t, int8_t>(dst, src, row, column, row_major_nk, order);
  }
  dispatch_float(dst.dtype(), [&](auto to) {
    dispatch_float(src.dtype(), [&](auto from) {
      repack<decltype(to), decltype(from)>(dst, src, row, column, row_major_nk, order);
    });
  });
}

void place_tiles(Tensor dst, ConstTensor src, int64_t first, int64_t k, RowOrder order) {
  using flexq_kernels::kTileBytes;
  const int64_t groups = flexq_kernels::group_count(k), tiles = dst.count() / kTileBytes;
  uint8_t* const to = static_cast<uint8_t*>(dst.raw());
  const uint8_t* const from = static_cast<const uint8_t*>(src.raw());
  flexq_kernels::parallel_ranges(tiles, src.count(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 2; i < end * 2; ++i) {
      const int half = static_cast<int>(i % 2);
      const TileHalf source = TileHalf::of(i / 2, half, groups, order);
      if (source.tile < first || source.tile >= first + src.dim(0)) continue;
      uint32_t words[kTileWords], given[kTileWords];
      std::memcpy(words, to + i / 2 * kTileBytes, kTileBytes);
      std::memcpy(given, from + (source.tile - first) * kTileBytes, kTileBytes);
      for (int lane = 0; lane < 32; ++lane) {
        place_tile_half(words, half, given, source.half, lane);
      }
      std::memcpy(to + i / 2 * kTileBytes, words, kTileBytes);
    }
  });
}

void tile_scales(Tensor dst, ConstTensor src, int64_t k) {
  flexq_kernels::tile_scales(static_cast<uint16_t*>(dst.raw()),
                             static_cast<const uint16_t*>(src.raw()), src.dim(1), k);
}

}  // namespace flexq_ft::cpu
