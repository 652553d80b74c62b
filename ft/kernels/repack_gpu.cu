#include <algorithm>
#include <type_traits>

#include "flexq_kernels/gpu/pack.h"
#include "ft/core/library_errors.h"
#include "ft/kernels/float_gpu.cuh"
#include "ft/kernels/launch.cuh"
#include "ft/kernels/tile_halves.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

constexpr int kTile = 32;      // of a transposed block, both ways
constexpr int kTileRows = 8;   // threads of a block along the other axis
constexpr int kThreads = 256;  // of a copied block
constexpr int kMaxBlocks = 1 << 16;

template <typename To, typename From>
__device__ __forceinline__ To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else {
    return from_float<To>(to_float(value));
  }
}

template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(To* to, const From* from, int64_t count) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    to[i] = convert<To>(from[i]);
  }
}

// Rows [row, row + rows) of so many columns to where they lie.
template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    place_rows_kernel(To* to, const From* from, int64_t row, int64_t rows, int64_t columns,
                      RowOrder order) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t count = rows * columns, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t r = i / columns;
    to[order.place(row + r) * columns + (i - r * columns)] = convert<To>(from[i]);
  }
}

// from [columns, rows] -> to, whose rows are k apart, from row `first` on. One block: one tile of
// from.
template <typename To, typename From>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose_kernel(To* to, const From* from, int64_t columns, int64_t rows, int64_t k,
                     int64_t first, RowOrder order) {
  __shared__ To tile[kTile][kTile + 1];  // the pad keeps its columns in different banks
  pdl_launch_dependents();
  pdl_wait();
  const int64_t row_tiles = (rows + kTile - 1) / kTile;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) % row_tiles * kTile;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) / row_tiles * kTile;
  const int x = static_cast<int>(threadIdx.x);
  for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
    if (column0 + y < columns && row0 + x < rows) {
      tile[y][x] = convert<To>(from[(column0 + y) * rows + row0 + x]);
    }
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
    if (row0 + y < rows && column0 + x < columns) {
      to[order.place(first + row0 + y) * k + column0 + x] = tile[x][y];
    }
  }
}

template <typename To, typename From>
void repack(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
            RowOrder order, Stream stream) {
  const int64_t k = dst.dim(1);
  const From* from = static_cast<const From*>(src.raw());
  To* to = static_cast<To*>(dst.raw()) + column;
  if (row_major_nk) {
    const int64_t blocks = std::min<int64_t>((src.count() + kThreads - 1) / kThreads, kMaxBlocks);
    const dim3 grid(static_cast<unsigned>(blocks));
    if (order.paired == 0) {
      return launch(convert_kernel<To, From>, grid, dim3(kThreads), 0, stream, to + row * k, from,
                    src.count());
    }
    return launch(place_rows_kernel<To, From>, grid, dim3(kThreads), 0, stream, to, from, row,
                  src.dim(0), k, order);
  }
  const int64_t columns = src.dim(0);
  const int64_t rows = src.dim(1);
  const int64_t tiles = ((rows + kTile - 1) / kTile) * ((columns + kTile - 1) / kTile);
  FLEXQ_FT_CHECK_LT(tiles, int64_t{1} << 31, "repack of ", src.shape());
  launch(transpose_kernel<To, From>, dim3(static_cast<unsigned>(tiles)), dim3(kTile, kTileRows), 0,
         stream, to, from, columns, rows, k, row, order);
}

// A warp takes a tile of the weight, a lane its words: halves that come of these tiles.
__global__ void __launch_bounds__(kThreads)
    place_tiles_kernel(uint32_t* to, const uint32_t* from, int64_t first, int64_t count,
                       int64_t tiles, int64_t groups, RowOrder order) {
  pdl_launch_dependents();
  pdl_wait();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       tile < tiles; tile += step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TileHalf source = TileHalf::of(tile, half, groups, order);
      if (source.tile < first || source.tile >= first + count) continue;
      place_tile_half(to + tile * kTileWords, half, from + (source.tile - first) * kTileWords,
                      source.half, lane);
    }
  }
}

}  // namespace

void repack_rows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                 RowOrder order, Stream stream) {
  if (size_of(dst.dtype()) == 1) {
    return repack<int8_t, int8_t>(dst, src, row, column, row_major_nk, order, stream);
  }
  dispatch_compute_type(dst.dtype(), [&](auto to) {
    dispatch_compute_type(src.dtype(), [&](auto from) {
      repack<decltype(to), decltype(from)>(dst, src, row, column, row_major_nk, order, stream);
    });
  });
}

void place_tiles(Tensor dst, ConstTensor src, int64_t first, int64_t k, RowOrder order,
                 Stream stream) {
  const int64_t tiles = dst.count() / flexq_kernels::kTileBytes;
  const int64_t blocks = std::min<int64_t>((tiles * 32 + kThreads - 1) / kThreads, kMaxBlocks);
  launch(place_tiles_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
         static_cast<uint32_t*>(dst.raw()), static_cast<const uint32_t*>(src.raw()), first,
         src.dim(0), tiles, flexq_kernels::group_count(k), order);
}

void tile_scales(Tensor dst, ConstTensor src, int64_t k, Stream stream) {
  with_library_errors(ErrorKind::kInternal, [&] {
    flexq_kernels::gpu::tile_scales(static_cast<uint16_t*>(dst.raw()),
                                    static_cast<const uint16_t*>(src.raw()), src.dim(1), k,
                                    {stream.handle, false});
  });
  full_edge(stream);
}

}  // namespace flexq_ft::gpu
