// The binary kernel. A block owns 16 rows of the weight; its eight warps take the groups in turn,
// each streams its tiles from memory to registers, some ahead, and they add up in the order of the
// warps. Weights are the A operand (16 rows), tokens are B (8 columns).
//
// mma.m16n8k256 has two halves of 128 bits of k: registers A0, A1 with B0, and A2, A3 with B1. A
// group has 128 k, so the halves take two planes each whose products have the same power of two.
// A weight's planes lie in fixed pairs, whose registers are as they were loaded; the activation's
// planes are paired to suit:
//
//            A:  w[2c]     w[2c + 1]                power 2c + j,  c = 0 … 2
//            B:  x[j]      x[j - 1]                 j = 0 … P - 1; x[-1] and the sign plane are 0
//
// which covers all products of the planes 0 … P - 2 of x. The sign plane s has its own sum, to be
// subtracted: (s, 0) has power 2c, (0, s) power 2c + 1. Powers are added up from the highest down,
// sum = 2 sum + products: 18 + 6 mma of a tile for A6, 24 + 6 for A8.
#include "flexq_kernels/gpu/btc_gemm.h"
#include "flexq_kernels/gpu/checks.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/int6.cuh"
#include "flexq_kernels/gpu/output.cuh"
#include "flexq_kernels/gpu/weight_load.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kWarps = 8;
constexpr int kBlockThreads = 32 * kWarps;
constexpr int kMostTokens = 64;  // of a block
constexpr int kSumStride = 20;   // 16 rows; 4t tokens apart are 8t banks apart

struct BtcArgs {
  Output y;
  int32_t* sums;
  BtcActivations x;
  BtcWeight w;
  int64_t m;
  int64_t n;
  int groups;
};

// What a lane holds of one tile.
struct LaneTile {
  uint4 planes[3];     // 2c, 2c + 1 in planes[c]: A0 … A3
  uint16_t scales[2];  // of rows g and g + 8
};

__device__ __forceinline__ void load_tile(LaneTile& tile, const BtcArgs& args, int group,
                                          int lane) {
  if (group >= args.groups) return;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * args.groups + group;
  const uint32_t* planes = args.w.planes + index * kTileWords;
  const uint64_t policy = stream_once_policy();
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const int at = btc_weight_word(lane / 4, 32 * (lane % 4), 2 * c);
    tile.planes[c] = load_weight(planes + at, policy);
  }
  const uint16_t* scales = args.w.scales + index * kTileRows + lane / 4;
  tile.scales[0] = __ldg(scales);
  tile.scales[1] = __ldg(scales + 8);
}

// d += the number of ones in a AND b.
__device__ __forceinline__ void mma_and_popc(int32_t (&d)[4], const uint4& a, uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The sum over pairs p of planes, (first[p], second[p]), first[p] times the weight's even planes
// and second[p] times its odd ones, of their products times 2^p. Even and odd powers are apart, so
// that a chain of mma is half as long.
template <int kPairs>
__device__ __forceinline__ void sum_powers(int32_t (&sum)[4], const uint4 (&w)[3],
                                           const uint32_t (&first)[kPairs],
                                           const uint32_t (&second)[kPairs]) {
  int32_t parts[2][4] = {};
#pragma unroll
  for (int power = kPairs + 3; power >= 0; --power) {
    int32_t (&part)[4] = parts[power % 2];
#pragma unroll
    for (int i = 0; i < 4; ++i) part[i] *= 4;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int pair = power - 2 * c;
      if (pair >= 0 && pair < kPairs) mma_and_popc(part, w[c], first[pair], second[pair]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = parts[0][i] + 2 * parts[1][i];
}

// The four group sums of a lane, rows g, g + 8 and tokens 2t, 2t + 1 of a block, as accumulators
// that began at kSumBias.
template <int kPlanes>
__device__ __forceinline__ void multiply(int32_t (&biased)[4], const uint4 (&w)[3],
                                         const uint32_t (&x)[kPlanes], int2 offset) {
  uint32_t first[kPlanes], second[kPlanes];
#pragma unroll
  for (int j = 0; j < kPlanes; ++j) {
    first[j] = j < kPlanes - 1 ? x[j] : 0;
    second[j] = j > 0 ? x[j - 1] : 0;
  }
  const uint32_t sign_first[2] = {x[kPlanes - 1], 0}, sign_second[2] = {0, x[kPlanes - 1]};
  int32_t up[4], down[4];
  sum_powers(up, w, first, second);
  sum_powers(down, w, sign_first, sign_second);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int32_t stored = up[i] - (down[i] << (kPlanes - 1));
    biased[i] = kSumBias + 4 * (stored + (i % 2 == 0 ? offset.x : offset.y));
  }
}

// Planes of this lane's token, zeros past m, so that one token costs the bytes of one.
template <int kPlanes>
__device__ __forceinline__ void load_planes(uint32_t (&x)[kPlanes], const uint32_t* block, int lane,
                                            bool valid) {
#pragma unroll
  for (int c = 0; c < kPlanes / 2; ++c) {
    uint2 pair = make_uint2(0, 0);
    if (valid) {
      const int word = btc_activation_word(lane / 4, 32 * (lane % 4), 2 * c);
      pair = *reinterpret_cast<const uint2*>(block + word);
    }
    x[2 * c] = pair.x;
    x[2 * c + 1] = pair.y;
  }
}

// sum[c][i] += group `group` of the tile times the tokens of block c; or its sums are stored.
template <int kPlanes, int kTokenTiles, bool kDumpsSums>
__device__ __forceinline__ void multiply_group(float (&sum)[kTokenTiles][4], const BtcArgs& args,
                                               const LaneTile& tile, int group, int lane) {
  const int g = lane / 4, t = lane % 4;
  const WeightScale scales[2] = {WeightScale(__half2float(__ushort_as_half(tile.scales[0]))),
                                 WeightScale(__half2float(__ushort_as_half(tile.scales[1])))};
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
    const int64_t first_token = (static_cast<int64_t>(blockIdx.y) * kTokenTiles + c) * kBtcTokens;
    if (first_token >= args.m) break;
    const uint32_t* block =
        args.x.planes + (first_token / kBtcTokens * args.groups + group) * btc_block_words(kPlanes);
    uint32_t x[kPlanes];
    load_planes(x, block, lane, first_token + g < args.m);
    const int2 offset = *reinterpret_cast<const int2*>(block + btc_offset_word(2 * t, kPlanes));
    int32_t biased[4];
    multiply(biased, tile.planes, x, offset);
    const int64_t token = first_token + 2 * t;
    if constexpr (kDumpsSums) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = blockIdx.x * int64_t{kTileRows} + g + 8 * (i / 2);
        if (token + i % 2 >= args.m || row >= args.n) continue;
        args.sums[((token + i % 2) * args.n + row) * args.groups + group] = group_sum(biased[i]);
      }
    } else {
      float2 scale = make_float2(0.0f, 0.0f);  // a stride is even: token + 1 is there if token is
      if (token < args.m) {
        scale =
            *reinterpret_cast<const float2*>(args.x.scales + group * args.x.scale_stride + token);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[c][i] =
            __fmaf_rn(scales[i / 2].apply(biased[i]), i % 2 == 0 ? scale.x : scale.y, sum[c][i]);
      }
    }
  }
}

// Adds the warps' sums in their order and stores what is inside y.
template <int kTokenTiles>
__device__ __forceinline__ void reduce_and_store(const BtcArgs& args,
                                                 const float (&sum)[kTokenTiles][4], int warp,
                                                 int lane) {
  constexpr int kTokens = kTokenTiles * kBtcTokens;
  __shared__ float shared[kWarps][kTokens][kSumStride];
#pragma unroll
  for (int c = 0; c < kTokenTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shared[warp][c * kBtcTokens + 2 * (lane % 4) + i % 2][lane / 4 + 8 * (i / 2)] = sum[c][i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kTileRows; i += kBlockThreads) {
    const int64_t token = static_cast<int64_t>(blockIdx.y) * kTokens + i / kTileRows;
    const int64_t row = blockIdx.x * int64_t{kTileRows} + i % kTileRows;
    if (token >= args.m || row >= args.n) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared[w][i / kTileRows][i % kTileRows];
    store_output(args.y, token * args.n + row, row, total);
  }
}

// Tiles in flight, as many as registers allow: three, of 2 blocks of 8 warps, are 72 KB of a
// multiprocessor. With many tokens a warp computes for longer than a load takes.
template <int kTokenTiles>
constexpr int kTilesAhead = kTokenTiles <= 2   ? 3
                            : kTokenTiles == 4 ? 2
                                               : 1;

// blockIdx.x: the row tile; blockIdx.y: which kTokenTiles * 8 tokens.
template <int kPlanes, int kTokenTiles, bool kDumpsSums>
__global__ void __launch_bounds__(kBlockThreads, 2) btc_w6ax_gemm(const BtcArgs args) {
  constexpr int kAhead = kTilesAhead<kTokenTiles>;
  pdl_launch_dependents();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  LaneTile ring[kAhead] = {};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_tile(ring[i], args, warp + i * kWarps, lane);
  pdl_wait();
  float sum[kTokenTiles][4] = {};
  for (int first = warp; first < args.groups; first += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int group = first + i * kWarps;
      if (group >= args.groups) break;
      multiply_group<kPlanes, kTokenTiles, kDumpsSums>(sum, args, ring[i], group, lane);
      load_tile(ring[i], args, group + kAhead * kWarps, lane);
    }
  }
  if constexpr (!kDumpsSums) reduce_and_store<kTokenTiles>(args, sum, warp, lane);
}

template <int kPlanes, bool kDumpsSums>
auto kernel_for(int token_tiles) {
  switch (token_tiles) {
    case 1:
      return btc_w6ax_gemm<kPlanes, 1, kDumpsSums>;
    case 2:
      return btc_w6ax_gemm<kPlanes, 2, kDumpsSums>;
    case 4:
      return btc_w6ax_gemm<kPlanes, 4, kDumpsSums>;
    default:
      return btc_w6ax_gemm<kPlanes, 8, kDumpsSums>;
  }
}

template <bool kDumpsSums>
void launch_btc(const BtcArgs& args, const GemmProblem& problem, const Launch& launch) {
  check_pointer(args.x.planes, "activation planes");
  check_activations(
      {reinterpret_cast<const int8_t*>(args.x.planes), args.x.scales, args.x.scale_stride},
      problem);
  check_weight({reinterpret_cast<const uint8_t*>(args.w.planes), args.w.scales});
  int token_tiles = 1;
  while (token_tiles * kBtcTokens < problem.m && token_tiles * kBtcTokens < kMostTokens) {
    token_tiles *= 2;
  }
  const int64_t tokens = token_tiles * kBtcTokens;
  const dim3 grid(static_cast<unsigned>(row_tiles(problem.n)),
                  static_cast<unsigned>((problem.m + tokens - 1) / tokens));
  launch_kernel(problem.act_bits == 6 ? kernel_for<6, kDumpsSums>(token_tiles)
                                      : kernel_for<8, kDumpsSums>(token_tiles),
                grid, kBlockThreads, 0, launch, args);
}

}  // namespace

std::string btc_why_not(const GemmProblem& problem, const Device& device) {
  constexpr int64_t kMostM = int64_t{65535} * kMostTokens;
  std::string reason = why_not_bits(problem);
  if (reason.empty()) reason = why_not_device(device);
  if (reason.empty() && problem.m > kMostM) {
    reason = detail::join("it takes up to ", kMostM, " tokens, not ", problem.m);
  }
  return reason;
}

void btc_gemm(const Output& y, const BtcActivations& x, const BtcWeight& w,
              const GemmProblem& problem, const Launch& launch) {
  if (!has_work(problem, btc_why_not)) return;
  check_output(y);
  launch_btc<false>(
      {y, nullptr, x, w, problem.m, problem.n, static_cast<int>(group_count(problem.k))}, problem,
      launch);
}

void btc_group_sums(int32_t* sums, const BtcActivations& x, const BtcWeight& w,
                    const GemmProblem& problem, const Launch& launch) {
  if (!has_work(problem, btc_why_not)) return;
  check_pointer(sums, "group sums");
  launch_btc<true>({{}, sums, x, w, problem.m, problem.n, static_cast<int>(group_count(problem.k))},
                   problem, launch);
}

}  // namespace flexq_kernels::gpu
