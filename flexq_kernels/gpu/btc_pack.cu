// Bit planes from codes: of a weight tile by tile, of activations by blocks of eight tokens and a
// group. A warp owns a tile or a block, and a lane writes what the product's lane will read.
#include "flexq_kernels/gpu/btc_gemm.h"
#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/quantize.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kBlockThreads = 256;

// Bit `bit` of each byte, gathered in order into the low four bits.
__device__ __forceinline__ uint32_t gather_bits(uint32_t bytes, int bit) {
  return ((bytes >> bit) & 0x01010101u) * 0x10204080u >> 28;
}

__device__ __forceinline__ int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * (kBlockThreads / 32) + threadIdx.x / 32;
}
__device__ __forceinline__ int64_t item_stride() {
  return static_cast<int64_t>(gridDim.x) * (kBlockThreads / 32);
}

__global__ void __launch_bounds__(kBlockThreads)
    btc_pack_weight_kernel(uint32_t* planes, const uint32_t* codes, int64_t tiles) {
  pdl_wait();
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, step = lane % 4;
  for (int64_t tile = first_item(); tile < tiles; tile += item_stride()) {
    uint32_t out[2 * kWeightPlanes] = {};  // plane p of row g + 8h: [2p + h]
    // The 32 k of this lane are one step of the packed tile, spread over the four lanes of row g.
    for (int t = 0; t < 4; ++t) {
      uint32_t words[3], a[4];
      for (int i = 0; i < 3; ++i) {
        const int word = 3 * step + i;
        words[i] = codes[tile * kTileWords + word / 4 * 128 + (4 * g + t) * 4 + word % 4];
      }
      unpack_int6(a, words[0], words[1], words[2]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int shift = 4 * (4 * (r / 2) + t);  // k 16 * (r / 2) + 4t of the step
#pragma unroll
        for (int p = 0; p < kWeightPlanes; ++p) {
          out[2 * p + r % 2] |= gather_bits(a[r], p + 2) << shift;
        }
      }
    }
    out[10] = ~out[10];  // code + 32 is the code with its sign bit turned
    out[11] = ~out[11];
    __syncwarp();  // the target may be the source
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      uint32_t* to = planes + tile * kTileWords + btc_weight_word(g, 32 * step, 2 * c);
      *reinterpret_cast<uint4*>(to) =
          make_uint4(out[4 * c], out[4 * c + 1], out[4 * c + 2], out[4 * c + 3]);
    }
  }
}

template <int kPlanes>
__global__ void __launch_bounds__(kBlockThreads)
    btc_pack_activations_kernel(uint32_t* planes, Activations x, int64_t m, int64_t groups) {
  pdl_launch_dependents();
  pdl_wait();
  const int lane = static_cast<int>(threadIdx.x) % 32, token = lane / 4, quarter = lane % 4;
  const int64_t blocks = btc_token_blocks(m) * groups;
  for (int64_t block = first_item(); block < blocks; block += item_stride()) {
    const int64_t row = block / groups * kBtcTokens + token;
    const int64_t group = block % groups;
    const auto* codes =
        reinterpret_cast<const uint32_t*>(x.codes + (row * groups + group) * kGroupSize);
    uint32_t out[kPlanes] = {};
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int word = 8 * quarter + i;  // k 32 * quarter + 4i
      uint32_t quad = 0;
      if (row < m) quad = codes[x.order == CodeOrder::kFragment ? fragment_word(word) : word];
      sum = __dp4a(static_cast<int>(quad), 0x01010101, sum);
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) out[p] |= gather_bits(quad, p) << (4 * i);
    }
    uint32_t* to = planes + block * btc_block_words(kPlanes);
#pragma unroll
    for (int c = 0; c < kPlanes / 2; ++c) {
      *reinterpret_cast<uint2*>(to + btc_activation_word(token, 32 * quarter, 2 * c)) =
          make_uint2(out[2 * c], out[2 * c + 1]);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (quarter == 0) {
      to[btc_offset_word(token, kPlanes)] = static_cast<uint32_t>(-kWeightOffset * sum);
    }
  }
}

// A warp per item; past some blocks per multiprocessor they loop.
dim3 grid_for(int64_t items) {
  const int64_t blocks = (32 * items + kBlockThreads - 1) / kBlockThreads;
  const int64_t most = int64_t{16} * current_device().multiprocessors;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

}  // namespace

void btc_pack_weight(uint32_t* planes, const uint8_t* codes, int64_t n, int64_t k,
                     const Launch& launch) {
  check_problem({1, n, k, 6});
  check_pointer(planes, "weight planes");
  check_pointer(codes, "weight codes");
  const int64_t tiles = row_tiles(n) * group_count(k);
  launch_kernel(btc_pack_weight_kernel, grid_for(tiles), kBlockThreads, 0, launch, planes,
                reinterpret_cast<const uint32_t*>(codes), tiles);
}

void btc_pack_activations(uint32_t* planes, const Activations& x, int64_t m, int64_t k,
                          int act_bits, const Launch& launch) {
  check_problem({m, 1, k, act_bits});
  if (m == 0) return;
  check_pointer(planes, "activation planes");
  check_pointer(x.codes, "activation codes");
  const int64_t groups = group_count(k);
  const auto kernel =
      act_bits == 6 ? btc_pack_activations_kernel<6> : btc_pack_activations_kernel<8>;
  launch_kernel(kernel, grid_for(btc_token_blocks(m) * groups), kBlockThreads, 0, launch, planes, x,
                m, groups);
}

}  // namespace flexq_kernels::gpu
