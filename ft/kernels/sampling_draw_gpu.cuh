// Top-k, top-p, min-p and the draw, by one thread block over a row of logits that fits in L2.
//
// Tokens are ordered as on the CPU, by logit and then by lower id, in one 64-bit rank, so that a
// cut is one number: a token is kept if its rank is not below it. Probabilities are integers, in
// units of 2^-44 of the best token's: their sums do not depend on the order of adding, which
// follows the scheduling of atomics here. A token below half a unit (e^-31) is never drawn.
//
// A cut is found in two stages: a histogram over 2048 steps of 1/64 below the best logit says in
// which step it falls; the tokens of that step, mostly few, are then looked at digit by digit.
#pragma once

#include <cstdint>

#include "ft/kernels/sampling_gpu.cuh"

namespace flexq_ft::gpu {

constexpr int kDrawThreads = 1024;
constexpr int kDrawWarps = kDrawThreads / kWarp;
constexpr int kDrawBins = 2048;
constexpr int kDrawGathered = 2048;
constexpr float kBinsPerUnit = 64.0f;
constexpr float kDrawRange = kDrawBins / kBinsPerUnit;  // below the best logit: e^-32 is nothing
constexpr double kMassUnits = 17592186044416.0;         // 2^44
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

using Mass = unsigned long long;

struct DrawShared {
  uint32_t low[kDrawBins];  // a histogram of 64-bit sums, in halves: shared memory has no other
  uint32_t high[kDrawBins];
  Mass gathered[kDrawGathered];  // ranks
  Mass warp_sums[kDrawWarps];
  Mass before;
  int found;
  int count;
};

// A row of adjusted logits.
struct DrawRow {
  const float* logits;
  int vocab;
  float top;  // the largest

  // The step below the best logit in which the token lies, -1 where its probability is nothing.
  __device__ __forceinline__ int bin(float logit) const {
    const float below = top - logit;
    return below < kDrawRange ? static_cast<int>(below * kBinsPerUnit) : -1;
  }
  __device__ __forceinline__ double weight(float logit) const {
    return exp(static_cast<double>(logit) - static_cast<double>(top));
  }
  __device__ __forceinline__ Mass mass(float logit) const {
    return __double2ull_rn(weight(logit) * kMassUnits);
  }
  // Larger is better.
  __device__ __forceinline__ Mass rank(int id, float logit) const {
    const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 is 0
    const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (static_cast<Mass>(ordered) << 32) | static_cast<uint32_t>(vocab - 1 - id);
  }
  __device__ __forceinline__ float logit_of(Mass rank) const {
    const uint32_t ordered = static_cast<uint32_t>(rank >> 32);
    return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7fffffffu : ~ordered);
  }
};

__device__ __forceinline__ Mass add_across_warp(Mass value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, step);
  }
  return value;
}

// The sum of the lanes up to this one.
__device__ __forceinline__ Mass scan_warp(Mass value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Mass other = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

__device__ __forceinline__ void clear_histogram(DrawShared& s, int bins) {
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += kDrawThreads) s.low[i] = s.high[i] = 0;
}

// Every add carries its own overflow of the low half, so the halves are right whatever the order.
__device__ __forceinline__ void add_to_histogram(DrawShared& s, int bin, Mass value) {
  const uint32_t low = static_cast<uint32_t>(value);
  const uint32_t old = atomicAdd(&s.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(value >> 32) + (old + low < old ? 1u : 0u);
  if (high != 0) atomicAdd(&s.high[bin], high);
}

// The same by a whole warp, bin < 0: nothing. Many equal logits would queue for one counter.
__device__ __forceinline__ void add_warp_to_histogram(DrawShared& s, int bin, Mass value) {
  int same = 0;
  __match_all_sync(kFullWarp, bin, &same);
  if (same == 0) {
    if (bin >= 0) add_to_histogram(s, bin, value);
  } else if (bin >= 0) {
    value = add_across_warp(value);
    if (threadIdx.x % kWarp == 0) add_to_histogram(s, bin, value);
  }
}

// f(id, logit) for every logit of the row, by whole warps; a logit of -inf behind the row's end.
template <typename F>
__device__ __forceinline__ void for_each_logit(const DrawRow& row, F&& f) {
  constexpr int kBatch = 8;  // loads in flight
  for (int first = 0; first < row.vocab; first += kBatch * kDrawThreads) {
    float logits[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int id = first + i * kDrawThreads + static_cast<int>(threadIdx.x);
      logits[i] = id < row.vocab ? row.logits[id] : -INFINITY;
    }
#pragma unroll 1
    for (int i = 0; i < kBatch; ++i) {
      f(first + i * kDrawThreads + static_cast<int>(threadIdx.x), logits[i]);
    }
  }
}

// The first bin with which the sum of the bins reaches quota(sum of all): s.found, or -1, and what
// lies before it, s.before. Returns the quota. By the whole block; synchronises at both ends.
template <typename Quota>
__device__ inline Mass find_bin(DrawShared& s, int bins, Quota&& quota_of) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  __syncthreads();
  Mass values[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int bin = 2 * thread + i;
    if (bin < bins) values[i] = (static_cast<Mass>(s.high[bin]) << 32) | s.low[bin];
  }
  const Mass up_to = scan_warp(values[0] + values[1]);
  if (lane == kWarp - 1) s.warp_sums[warp] = up_to;
  if (thread == 0) s.found = -1;
  __syncthreads();
  const Mass warps = scan_warp(s.warp_sums[lane]);
  const Mass total = __shfl_sync(kFullWarp, warps, kWarp - 1);
  const Mass through = __shfl_sync(kFullWarp, warps, warp);
  const Mass quota = quota_of(total);
  Mass before = through - s.warp_sums[warp] + up_to - values[0] - values[1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (before < quota && quota <= before + values[i]) {
      s.found = 2 * thread + i;
      s.before = before;
    }
    before += values[i];
  }
  __syncthreads();
  return quota;
}

// The rank among those of one bin at which their sum, from the best on, reaches the quota.
// for_each(f) calls f(whether it is one, rank) in whole warps, once for each of them.
template <bool kMass, typename ForEach>
__device__ inline Mass select_rank(const DrawRow& row, DrawShared& s, Mass quota,
                                   ForEach&& for_each) {
  Mass prefix = 0, decided = 0;
#pragma unroll 1
  for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    if (shift < 32 && (static_cast<uint32_t>(row.vocab - 1) >> shift) == 0) continue;
    clear_histogram(s, kDigits);
    __syncthreads();
    for_each([&](bool one, Mass rank) {
      const int digit = static_cast<int>(rank >> shift) & (kDigits - 1);
      one = one && (rank & decided) == prefix;
      add_warp_to_histogram(s, one ? kDigits - 1 - digit : -1,
                            kMass && one ? row.mass(row.logit_of(rank)) : 1);
    });
    find_bin(s, kDigits, [&](Mass) { return quota; });
    quota -= s.before;
    prefix |= static_cast<Mass>(kDigits - 1 - s.found) << shift;
    decided |= static_cast<Mass>(kDigits - 1) << shift;
    __syncthreads();
  }
  return prefix;
}

// The rank of the last token that is kept where the best ones are kept until their number, or
// their mass, reaches the quota; floor if all from there on do not reach it. Ranks below floor do
// not take part.
template <bool kMass, typename Quota>
__device__ inline Mass find_cut(const DrawRow& row, DrawShared& s, Mass floor, Quota&& quota_of) {
  clear_histogram(s, kDrawBins);
  __syncthreads();
  for_each_logit(row, [&](int id, float logit) {
    const int bin = row.rank(id, logit) >= floor ? row.bin(logit) : -1;
    add_warp_to_histogram(s, bin, kMass && bin >= 0 ? row.mass(logit) : 1);
  });
  Mass quota = find_bin(s, kDrawBins, quota_of);
  const int cut_bin = s.found;
  if (cut_bin < 0) return floor;
  quota -= s.before;

  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  const auto in_cut_bin = [&](int id, float logit) {
    return row.bin(logit) == cut_bin && row.rank(id, logit) >= floor;
  };
  for_each_logit(row, [&](int id, float logit) {
    if (!in_cut_bin(id, logit)) return;
    const int at = atomicAdd(&s.count, 1);
    if (at < kDrawGathered) s.gathered[at] = row.rank(id, logit);
  });
  __syncthreads();
  const int count = s.count;
  if (count <= kDrawGathered) {
    return select_rank<kMass>(row, s, quota, [&](auto&& f) {
      for (int first = 0; first < count; first += kDrawThreads) {
        const int i = first + static_cast<int>(threadIdx.x);
        f(i < count, i < count ? s.gathered[i] : 0);
      }
    });
  }
  return select_rank<kMass>(row, s, quota, [&](auto&& f) {
    for_each_logit(row,
                   [&](int id, float logit) { f(in_cut_bin(id, logit), row.rank(id, logit)); });
  });
}

// The first token, by id, with which the mass of the kept ones exceeds uniform of it all. In every
// thread. Each round looks for it in a 32nd of the ids of the round before.
__device__ inline int draw_kept(const DrawRow& row, DrawShared& s, Mass cut, double min_p,
                                double uniform) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto kept_mass = [&](int id, float logit) -> Mass {
    if (row.bin(logit) < 0 || row.rank(id, logit) < cut) return 0;
    const double weight = row.weight(logit);
    return weight < min_p ? 0 : __double2ull_rn(weight * kMassUnits);
  };
  int begin = 0, end = row.vocab, part = 0;
  Mass before = 0, limit = 0;
  do {
    part = ((end - begin + kDrawWarps - 1) / kDrawWarps + kWarp - 1) / kWarp * kWarp;
    const int last = min(begin + (warp + 1) * part, end);
    Mass sum = 0;
#pragma unroll 4
    for (int id = begin + warp * part + lane; id < last; id += kWarp) {
      sum += kept_mass(id, row.logits[id]);
    }
    sum = add_across_warp(sum);
    __syncthreads();  // the sums of the round before have been read
    if (lane == 0) s.warp_sums[warp] = sum;
    __syncthreads();
    const Mass of_warp = s.warp_sums[lane];
    const Mass up_to = scan_warp(of_warp);
    if (end - begin == row.vocab) {
      const Mass total = __shfl_sync(kFullWarp, up_to, kWarp - 1);
      limit = min(__double2ull_rd(__dmul_rn(uniform, __ull2double_rn(total))), total - 1);
    }
    const int inside =
        __ffs(static_cast<int>(__ballot_sync(kFullWarp, before + up_to > limit))) - 1;
    before += __shfl_sync(kFullWarp, up_to - of_warp, inside);
    begin += inside * part;
    end = min(begin + part, end);
  } while (part > kWarp);
  const int id = begin + lane;
  const Mass up_to = scan_warp(id < end ? kept_mass(id, row.logits[id]) : 0);
  return begin + __ffs(static_cast<int>(__ballot_sync(kFullWarp, before + up_to > limit))) - 1;
}

// philox_uniform of ft/kernels/sampling.h.
__device__ inline double philox_uniform_gpu(uint64_t seed, uint64_t index) {
  uint32_t c[4] = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0u, 0u};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0];
    c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1];
    c[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (static_cast<uint64_t>(c[1]) << 32) | c[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// The token of a row that is not greedy, in every thread of the block.
__device__ inline int draw_token(const DrawRow& row, DrawShared& s, const SlotParams& p,
                                 int32_t generated) {
  Mass cut = 0;
  if (p.top_k > 0 && p.top_k < row.vocab) {
    cut = find_cut<false>(row, s, cut, [&](Mass) { return static_cast<Mass>(p.top_k); });
  }
  if (p.top_p < 1.0 && !(p.top_k > 0 && p.top_p == 0.0)) {
    cut = find_cut<true>(row, s, cut, [&](Mass all) {
      const Mass share = __double2ull_ru(__dmul_rn(p.top_p, __ull2double_rn(all)));
      return min(max(share, static_cast<Mass>(1)), all);
    });
  }
  return draw_kept(row, s, cut, p.min_p,
                   philox_uniform_gpu(p.seed, static_cast<uint64_t>(generated)));
}

}  // namespace flexq_ft::gpu
