// The attention's products: pages of K and V out of the ring, on the tensor cores, with all query
// heads that share them at once, which are the eight columns of B and of the sums (mma.cuh).
//   scores: A is K, 16 tokens of a page; a warp takes whole pages, so that it needs no other's
//   sums. values: A is V transposed, 16 dimensions of a page; B are the exponentials.
// So that an exponential keeps (nearly) the precision of fp32 it is two values: itself rounded, and
// what the rounding left. A stage holds a page as boxes of 64 dimensions: [16 tokens][128 bytes],
// in which the 16-byte piece i of token r is at i ^ r % 8.
#pragma once

#include "flexq_kernels/gpu/mma.cuh"
#include "ft/kernels/attention_common.cuh"
#include "ft/step/attention_room.cuh"
#include "ft/step/attention_units.cuh"

namespace flexq_ft::step {

using flexq_kernels::gpu::load_matrices;
using flexq_kernels::gpu::load_matrices_transposed;
using gpu::kMinusInfinity;

constexpr float kLog2E = 1.4426950408889634f;

template <typename T, int kDim>
class PageProducts {
 public:
  __device__ __forceinline__ PageProducts(const Place& place, int index)
      : place_(place), room_(place), index_(index) {}

  // q times K. The team's pages are dealt to its warps; turn: how many come before this warp's
  // next.
  __device__ __forceinline__ void score(const AttentionUnit& unit, int slot, int& turn,
                                        RingReader& ring) const {
    const int lane = place_.lane;
    uint32_t q[kSteps / 2][4];  // of two steps each
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
      load_matrices(q[i], room_.query(slot, min(lane % 8, room_.sharing() - 1)) +
                              static_cast<uint32_t>(i * 64 + lane / 8 * 16));
    }
    float tops[2] = {kMinusInfinity, kMinusInfinity};  // of heads 2t and 2t + 1
    // The last warps have the fewest pages.
    bool has_scores = unit.newest != 0 && place_.warp == kWarps - 1 - slot % kTeamWarps;
    if (has_scores) score_newest(unit, slot, q, tops);
    for_stages(unit, ring, [&](uint32_t stage, int begin, int count) {
      const int pages = (count + kPageTokens - 1) / kPageTokens;
      if (turn < pages) {
        const uint32_t page = stage + static_cast<uint32_t>(turn * kPageBytes);
        float sums[4][4] = {};  // a product need not wait for the last one
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          uint32_t k[4];
          load_matrices(k, page + in_page(lane % 16, i, lane / 16));
          multiply(sums[i % 4], k, q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
        }
        const int token = turn * kPageTokens;
        store_scores(slot, begin + token, count - token, sums, tops);
        has_scores = true;
      }
      turn = (turn + kTeamWarps - pages) % kTeamWarps;
    });
    if (has_scores) store_tops(slot, tops);
  }

  // Exponentials times V of the cached tokens. A warp takes 16 dimensions; where there are more
  // warps than that, every second page.
  __device__ __forceinline__ void add_up(const AttentionUnit& unit, int slot,
                                         RingReader& ring) const {
    const int lane = place_.lane, g = lane / 4, t = lane % 4;
    const int first = ring.ahead();
    const int split = kSplits == 1 ? 0 : place_.member() / kDimWarps;
    const int dims = place_.member() % kDimWarps;
    const uint32_t in = in_page(lane % 8 + lane / 16 * 8, dims, lane / 8 % 2);
    float sums[4] = {}, rests[4] = {};
    for_stages(unit, ring, [&](uint32_t stage, int begin, int count) {
      const uint32_t weights = room_.score(slot, min(g, room_.sharing() - 1), begin + 2 * t);
#pragma unroll
      for (int i = split; i < kStageTokens / kPageTokens; i += kSplits) {
        const int left = count - i * kPageTokens;
        if (left <= 0) break;
        uint32_t v[4];
        load_matrices_transposed(v, stage + in + static_cast<uint32_t>(i * kPageBytes));
        if (left < kPageTokens) forget_behind(v, left);
        const uint2 low = load_shared_quad(weights + i * kPageTokens * 4);
        const uint2 high = load_shared_quad(weights + i * kPageTokens * 4 + 32);
        multiply(sums, v, low.x, high.x);
        multiply(rests, v, low.y, high.y);
      }
    });
    // In an order that does not depend on which team took the first stage.
    const int which = first * kSplits + split;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * t + i % 2;
      if (row >= room_.sharing()) continue;
      store_shared_float(room_.value(slot, which, row, dims * kValueDims + g + i / 2 * 8),
                         sums[i] + rests[i]);
    }
  }

 private:
  static constexpr int kStageTokens = stage_tokens(kDim);
  static constexpr int kPageBytes = kPageTokens * kDim * 2;
  static constexpr int kBoxOfPage = kPageTokens * kBoxBytes;  // bytes
  static constexpr int kSteps = kDim / 16;                    // of a product over a head
  static constexpr int kDimWarps = kDim / kValueDims;         // that have all values together
  static constexpr int kSplits = value_sums(kDim) / kTeams;   // of a team's pages

  // The team's stages of a unit's K or V: where each lies, its first token, and how many there are.
  template <typename Take>
  __device__ __forceinline__ void for_stages(const AttentionUnit& unit, RingReader& ring,
                                             const Take& take) const {
    const int end = cached_end(unit);
#pragma unroll 1
    for (int begin = unit.begin + ring.ahead() * kStageTokens; begin < end;
         begin += kTeams * kStageTokens) {
      take(ring.wait(index_), begin - unit.begin, min(kStageTokens, end - begin));
      ring.release();
    }
    ring.pass((end - unit.begin + kStageTokens - 1) / kStageTokens);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    gpu::mma_16816(sums, a[0], a[1], a[2], a[3], b0, b1, T{});
  }

  // Where a lane's row of a 16 x 16 matrix lies: token, and dims [16 step, 16 step + 8) or, of
  // `second`, the eight behind.
  static __device__ __forceinline__ uint32_t in_page(int token, int step, int second) {
    const int piece = step % 4 * 2 + second;
    return static_cast<uint32_t>(step / 4 * kBoxOfPage + token * kBoxBytes +
                                 ((piece ^ token % 8) * 16));
  }

  // As the first token of a page that has no other.
  __device__ __forceinline__ void score_newest(const AttentionUnit& unit, int slot,
                                               const uint32_t (&q)[kSteps / 2][4],
                                               float (&tops)[2]) const {
    const uint32_t from = room_.newest(slot, 0) + static_cast<uint32_t>(place_.lane % 4 * 4);
    float sums[4][4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t k[4] = {};
      if (place_.lane < 4) {
        k[0] = load_shared_word(from + i * 32);
        k[2] = load_shared_word(from + i * 32 + 16);
      }
      multiply(sums[i % 4], k, q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
    }
    store_scores(slot, unit.end - 1 - unit.begin, 1, sums, tops);
  }

  // Of 16 tokens from `token` of the unit on, of which there are `count`, as exponents of 2.
  __device__ __forceinline__ void store_scores(int slot, int token, int count,
                                               const float (&sums)[4][4], float (&tops)[2]) const {
    const float scale = kLog2E / sqrtf(static_cast<float>(kDim));
    const int row = place_.lane / 4, head = place_.lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i / 2 * 8, h = head + i % 2;
      if (r >= count) continue;
      const float s = ((sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i])) * scale;
      tops[i % 2] = fmaxf(tops[i % 2], s);
      if (h < room_.sharing()) store_shared_float(room_.score(slot, h, token + r), s);
    }
  }

  // The largest of the warp's scores of each head.
  __device__ __forceinline__ void store_tops(int slot, float (&tops)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        tops[i] = fmaxf(tops[i], __shfl_xor_sync(kAllLanes, tops[i], lanes));
      }
      const int head = place_.lane * 2 + i;
      if (head < room_.sharing()) store_shared_float(room_.top(slot, head, place_.warp), tops[i]);
    }
  }

  // Of a page's values those behind its first `count` tokens, which may be anything.
  __device__ __forceinline__ void forget_behind(uint32_t (&v)[4], int count) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int left = count - (2 * (place_.lane % 4) + i / 2 * 8);
      v[i] &= left >= 2 ? ~0u : left == 1 ? 0xffffu : 0u;
    }
  }

  const Place& place_;
  AttentionRoom<kDim> room_;
  int index_;
};

}  // namespace flexq_ft::step
