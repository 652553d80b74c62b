// pack_int6, unpack_int6 and tile_scales on a GPU. A warp owns a tile of 16 rows x 128 k, each lane
// the registers that the layout gives it (pack/pack_cpu.cc draws the tile), so packing moves 32-bit
// words that hold four neighbours in k.
#include "flexq_kernels/gpu/pack.h"

#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/int6.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kBlockThreads = 256;
constexpr uint32_t kLowTwo = 0x03030303u;

struct Matrix {
  int64_t n;
  int64_t k;
};

// Four neighbours in k as bytes, zeros outside the matrix. Where k is a multiple of four, words are
// aligned and lie inside or outside as a whole.
__device__ uint32_t load_quad(const int8_t* codes, Matrix shape, int64_t row, int64_t k) {
  if (row >= shape.n || k >= shape.k) return 0;
  const int8_t* from = codes + row * shape.k + k;
  if (shape.k % 4 == 0) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t word = 0;
  for (int b = 0; b < 4 && k + b < shape.k; ++b) {
    word |= static_cast<uint32_t>(static_cast<uint8_t>(from[b])) << (8 * b);
  }
  return word;
}

__device__ void store_quad(int8_t* codes, Matrix shape, int64_t row, int64_t k, uint32_t word) {
  if (row >= shape.n || k >= shape.k) return;
  int8_t* to = codes + row * shape.k + k;
  if (shape.k % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = word;
    return;
  }
  for (int b = 0; b < 4 && k + b < shape.k; ++b) to[b] = static_cast<int8_t>(word >> (8 * b));
}

// Four times a code in each byte, as unpack_int6 makes it -> the code.
__device__ uint32_t quarter(uint32_t top_aligned) {
  const uint32_t codes = (top_aligned >> 2) & 0x3f3f3f3fu;
  const uint32_t sign = codes & 0x20202020u;
  return codes | (sign << 1) | (sign << 2);
}

// Calls run(tile's first row, tile's first k, index of the tile) for the tiles of this warp.
template <typename Run>
__device__ void for_each_tile(Matrix shape, const Run& run) {
  const int64_t groups = group_count(shape.k), tiles = row_tiles(shape.n) * groups;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kBlockThreads / 32);
  int64_t tile = static_cast<int64_t>(blockIdx.x) * (kBlockThreads / 32) + threadIdx.x / 32;
  for (; tile < tiles; tile += warps) {
    run(tile / groups * kTileRows, tile % groups * kGroupSize, tile);
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    pack_int6_kernel(uint8_t* packed, const int8_t* codes, Matrix shape) {
  pdl_wait();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for_each_tile(shape, [&](int64_t row, int64_t k, int64_t tile) {
    uint32_t words[12];
#pragma unroll
    for (int s = 0; s < kStepsPerGroup; ++s) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        r[i] = load_quad(codes, shape, row + g + 8 * (i & 1), k + 32 * s + 16 * (i >> 1) + 4 * t);
      }
      words[3 * s] = ((r[0] << 2) & ~kLowTwo) | ((r[3] >> 4) & kLowTwo);
      words[3 * s + 1] = ((r[1] << 2) & ~kLowTwo) | ((r[3] >> 2) & kLowTwo);
      words[3 * s + 2] = ((r[2] << 2) & ~kLowTwo) | (r[3] & kLowTwo);
    }
    uint4* to = reinterpret_cast<uint4*>(packed + tile * kTileBytes) + lane;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      to[32 * c] = make_uint4(words[4 * c], words[4 * c + 1], words[4 * c + 2], words[4 * c + 3]);
    }
  });
}

__global__ void __launch_bounds__(kBlockThreads)
    unpack_int6_kernel(int8_t* codes, const uint8_t* packed, Matrix shape) {
  pdl_wait();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for_each_tile(shape, [&](int64_t row, int64_t k, int64_t tile) {
    const uint4* from = reinterpret_cast<const uint4*>(packed + tile * kTileBytes) + lane;
    const uint4 chunks[3] = {from[0], from[32], from[64]};
    const uint32_t words[12] = {chunks[0].x, chunks[0].y, chunks[0].z, chunks[0].w,
                                chunks[1].x, chunks[1].y, chunks[1].z, chunks[1].w,
                                chunks[2].x, chunks[2].y, chunks[2].z, chunks[2].w};
#pragma unroll
    for (int s = 0; s < kStepsPerGroup; ++s) {
      uint32_t r[4];
      unpack_int6(r, words[3 * s], words[3 * s + 1], words[3 * s + 2]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_quad(codes, shape, row + g + 8 * (i & 1), k + 32 * s + 16 * (i >> 1) + 4 * t,
                   quarter(r[i]));
      }
    }
  });
}

// Half a warp writes the sixteen scales of one tile.
__global__ void __launch_bounds__(kBlockThreads)
    tile_scales_kernel(uint16_t* tiled, const uint16_t* scales, Matrix shape) {
  pdl_wait();
  const int64_t groups = group_count(shape.k), count = tiled_scale_count(shape.n, shape.k);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  for (; i < count; i += threads) {
    const int64_t tile = i / kTileRows;
    const int64_t row = tile / groups * kTileRows + i % kTileRows;
    tiled[i] = row < shape.n ? scales[tile % groups * shape.n + row] : uint16_t{0};
  }
}

void check_matrix(const void* to, const void* from, int64_t n, int64_t k) {
  FLEXQ_CHECK(n >= 0 && k >= 1 && n <= kMaxExtent && k <= kMaxExtent, "cannot pack a matrix [", n,
              ", ", k, "]: n must be 0 … ", kMaxExtent, ", k 1 … ", kMaxExtent);
  if (n == 0) return;
  check_pointer(to, "target of a packed matrix");
  check_pointer(from, "source of a packed matrix");
}

// Blocks for so many threads' worth of work; past a few per multiprocessor they loop.
dim3 grid_for(int64_t threads) {
  const int64_t blocks = (threads + kBlockThreads - 1) / kBlockThreads;
  const int64_t most = int64_t{16} * current_device().multiprocessors;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

}  // namespace

void pack_int6(uint8_t* packed, const int8_t* codes, int64_t n, int64_t k, const Launch& launch) {
  check_matrix(packed, codes, n, k);
  if (n == 0) return;
  launch_kernel(pack_int6_kernel, grid_for(32 * row_tiles(n) * group_count(k)), kBlockThreads, 0,
                launch, packed, codes, Matrix{n, k});
}

void unpack_int6(int8_t* codes, const uint8_t* packed, int64_t n, int64_t k, const Launch& launch) {
  check_matrix(codes, packed, n, k);
  if (n == 0) return;
  launch_kernel(unpack_int6_kernel, grid_for(32 * row_tiles(n) * group_count(k)), kBlockThreads, 0,
                launch, codes, packed, Matrix{n, k});
}

void tile_scales(uint16_t* tiled, const uint16_t* scales, int64_t n, int64_t k,
                 const Launch& launch) {
  check_matrix(tiled, scales, n, k);
  if (n == 0) return;
  launch_kernel(tile_scales_kernel, grid_for(tiled_scale_count(n, k)), kBlockThreads, 0, launch,
                tiled, scales, Matrix{n, k});
}

}  // namespace flexq_kernels::gpu
