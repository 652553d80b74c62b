// Shared memory of a block of wgmma prefill attention, and the four warps that fill it: the queries
// once, then keys and values through a ring, in the order in which they are read:
//   K of tile 0, K of 1, V of 0, K of 2, V of 1, … V of the last but one, V of the last
#pragma once

#include "flexq_kernels/gpu/hopper.cuh"
#include "ft/kernels/attention_prefill_wgmma.cuh"

namespace flexq_ft::gpu {

namespace hopper = flexq_kernels::gpu;

// How the copies find their boxes.
struct PrefillMaps {
  CUtensorMap q;  // [heads * head_dim / 64][tokens][64], boxes of 64 queries of a head
  CUtensorMap k;  // [rows / 8][head_dim / 64][8][64], boxes of a page of a KV head
  CUtensorMap v;
};

// Do a row at this position, and those behind it, see all of a tile?
__device__ __forceinline__ bool sees_all_of(int tile, int position) {
  return (tile + 1) * kWgmmaTile <= position + 1;
}

// Barriers of some of a block's warps, by number.
__device__ __forceinline__ void barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// kGroups warpgroups of kWgmmaRows queries each.
template <int kDim, int kGroups>
struct PrefillRing {
  static constexpr int kWarps = 4;                                  // that fill it
  static constexpr int kPages = kWgmmaTile / kPageTokens / kWarps;  // of a tile, for each
  static constexpr int kPageBytes = kPageTokens * kDim * 2;
  static constexpr int kQueryBytes = kWgmmaRows * kDim * 2;  // of a warpgroup
  static constexpr int kSlotBytes = kWgmmaTile * kDim * 2;   // a tile of keys or of values
  // Two are read at a time. With three two blocks have room on a multiprocessor.
  static constexpr int kSlots = kGroups == 1 ? 3 : 6;
  static constexpr int kSlotsAt = kGroups * kQueryBytes;
  static constexpr int kFullAt = kSlotsAt + kSlots * kSlotBytes;  // barriers
  static constexpr int kEmptyAt = kFullAt + 8 * kSlots;
  static constexpr int kQueriesAt = kEmptyAt + 8 * kSlots;
  static constexpr int kCheckedAt = kQueriesAt + 8;
  static constexpr int kMarksAt = kCheckedAt + 2 * 8;
  static constexpr size_t kBytes = kMarksAt + 2 * kWgmmaTile / 8;

  using Cursor = hopper::RingPlace<kSlots>;  // in the order of reading

  uint32_t base;  // address in shared memory

  __device__ __forceinline__ uint32_t queries(int group) const {
    return base + group * kQueryBytes;
  }
  __device__ __forceinline__ uint32_t queries_full() const { return base + kQueriesAt; }
  static __device__ __forceinline__ int slot_at(const Cursor& at) {
    return kSlotsAt + static_cast<int>(at.stage) * kSlotBytes;
  }
  __device__ __forceinline__ uint32_t slot(const Cursor& at) const { return base + slot_at(at); }
  __device__ __forceinline__ uint32_t full(const Cursor& at) const {
    return base + kFullAt + 8 * at.stage;
  }
  __device__ __forceinline__ uint32_t empty(const Cursor& at) const {
    return base + kEmptyAt + 8 * at.stage;
  }

  // Of at most two tiles of a block some row does not see all; they follow each other.
  __device__ __forceinline__ uint32_t checked(int tile) const {
    return base + kCheckedAt + 8 * (tile % 2);
  }
  // A bit for each position of such a tile, set if its values are not all finite. memory: where the
  // ring is.
  static __device__ __forceinline__ uint32_t* marks(unsigned char* memory, int tile) {
    return reinterpret_cast<uint32_t*>(memory + kMarksAt) + tile % 2 * (kWgmmaTile / 32);
  }
  // Eight of the values of a tile's row. Eight rows' i-th lie in different banks.
  static __device__ __forceinline__ uint4* eight(unsigned char* v, int row, int i) {
    return reinterpret_cast<uint4*>(v + panel_byte(1024, kDim / 64 * 1024, row, i * 8));
  }

  // By one thread.
  __device__ __forceinline__ void init() const {
    for (Cursor at; at.stage < kSlots; ++at.stage) {
      hopper::mbarrier_init(full(at), kWarps);
      hopper::mbarrier_init(empty(at), kGroups * 4);
    }
    hopper::mbarrier_init(queries_full(), 1);
    for (int tile = 0; tile < 2; ++tile) hopper::mbarrier_init(checked(tile), kWarps);
    hopper::mbarrier_init_fence();
  }

  __device__ __forceinline__ void wait(const Cursor& at) const {
    hopper::mbarrier_wait(full(at), at.parity);
  }
  // By each warp of the warpgroups, when it has read what lies there.
  __device__ __forceinline__ void release(const Cursor& at) const {
    if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(empty(at));
  }

  // By one lane of each warp. tiles: of positions; pages: the sequence's ids, of which last_page is
  // the last that any row sees. What lies behind it is not copied.
  __device__ __forceinline__ void fill(const PrefillMaps& maps, const int32_t* pages, int64_t token,
                                       int head, int kv_head, int kv_heads, int tiles,
                                       int last_page) const {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    struct Rows {
      int eights[kPages];  // where the cache has this warp's pages of a tile; -1: not to be copied
    };
    const auto rows_of = [&](int tile) {
      Rows rows;
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        const int page = (tile * kWarps + warp) * kPages + i;
        rows.eights[i] =
            page > last_page ? -1 : (pages[page] * kv_heads + kv_head) * (kPageTokens / 8);
      }
      return rows;
    };
    Cursor at;
    const auto copy = [&](const CUtensorMap& map, const Rows& rows) {
      hopper::mbarrier_wait(empty(at), at.parity ^ 1);
      int count = 0;
#pragma unroll
      for (int i = 0; i < kPages; ++i) count += rows.eights[i] >= 0;
      hopper::mbarrier_arrive_expecting(full(at), count * kPageBytes);
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        if (rows.eights[i] < 0) continue;
        hopper::copy_tensor(slot(at) + (warp * kPages + i) * kPageBytes, map, full(at), 0, 0, 0,
                            rows.eights[i]);
      }
      at.advance();
    };
    Rows rows = rows_of(0), next = rows_of(1);
    if (warp == 0) {
      hopper::mbarrier_arrive_expecting(queries_full(), kGroups * kQueryBytes);
      for (int group = 0; group < kGroups; ++group) {
        hopper::copy_tensor(queries(group), maps.q, queries_full(), 0,
                            static_cast<int>(token) + group * kWgmmaRows, head * (kDim / 64));
      }
    }
    copy(maps.k, rows);
    for (int tile = 1; tile < tiles; ++tile) {
      copy(maps.k, next);
      const Rows after = rows_of(tile + 1);
      copy(maps.v, rows);
      rows = next;
      next = after;
    }
    copy(maps.v, rows);
  }

  // By all lanes of the warps, behind fill(): of the values of one of the last two tiles the rows
  // from position `end` on, which no row sees, become zeros; the others are marked. A thread has a
  // row.
  template <typename T>
  __device__ __forceinline__ void check(unsigned char* memory, int tile, int tiles, int end) const {
    const int row = static_cast<int>(threadIdx.x);
    // In the order of reading, where the last two values are last.
    const auto place = static_cast<uint32_t>(tiles + tile);
    const Cursor at{place % kSlots, place / kSlots % 2};
    wait(at);
    unsigned char* const v = memory + slot_at(at);
    uint32_t bad = 0;
    if (tile * kWgmmaTile + row < end) {
#pragma unroll 4
      for (int i = 0; i < kDim / 8; ++i) {
        const uint4 x = *eight(v, row, i);
        bad |= not_finite(x.x, T{}) | not_finite(x.y, T{}) | not_finite(x.z, T{}) |
               not_finite(x.w, T{});
      }
    } else {
#pragma unroll 4
      for (int i = 0; i < kDim / 8; ++i) *eight(v, row, i) = uint4{0, 0, 0, 0};
      hopper::copies_see_writes();
    }
    const uint32_t mine = __ballot_sync(0xffffffffu, bad != 0);
    if (row % 32 == 0) marks(memory, tile)[row / 32] = mine;
    __syncwarp();
    if (row % 32 == 0) hopper::mbarrier_arrive(checked(tile));
  }
};

}  // namespace flexq_ft::gpu
