// Shared memory of a block of wgmma prefill attention, and the warp that fills it: the queries
// once, then keys and values through a ring, in the order in which they are read:
//   K of tile 0, K of 1, V of 0, K of 2, V of 1, … V of the last but one, V of the last
#pragma once

#include "flexq_kernels/gpu/hopper.cuh"
#include "ft/kernels/attention_prefill_wgmma.cuh"

namespace flexq_ft::gpu {

namespace hopper = flexq_kernels::gpu;

// How the copies find their boxes: 64 columns of 64 queries, or of a page of a KV head.
struct PrefillMaps {
  CUtensorMap q;  // [tokens][heads * head_dim]
  CUtensorMap k;  // [rows][head_dim]
  CUtensorMap v;
  int rows;  // num_pages * kv_heads * 16
};

// Barriers of some of a block's warps, by number.
__device__ __forceinline__ void barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ bool barrier_any(int barrier, int threads, bool mine) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred mine, any;\n"
      "setp.ne.b32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;\n"
      "}"
      : "=r"(any)
      : "r"(barrier), "r"(threads), "r"(static_cast<int>(mine))
      : "memory");
  return any != 0;
}

// kGroups warpgroups of kWgmmaRows queries each.
template <int kDim, int kGroups>
struct PrefillRing {
  static constexpr int kPanels = kDim / 64;
  static constexpr int kQueryBytes = kWgmmaRows * kDim * 2;  // of a warpgroup
  static constexpr int kSlotBytes = kWgmmaTile * kDim * 2;   // a tile of keys or of values
  // Two are read at a time. With three two blocks have room on a multiprocessor.
  static constexpr int kSlots = kGroups == 1 ? 3 : 6;
  static constexpr int kSlotsAt = kGroups * kQueryBytes;
  static constexpr int kFullAt = kSlotsAt + kSlots * kSlotBytes;  // barriers
  static constexpr int kEmptyAt = kFullAt + 8 * kSlots;
  static constexpr int kQueriesAt = kEmptyAt + 8 * kSlots;
  static constexpr size_t kBytes = kQueriesAt + 8;

  // A place in the order of reading.
  struct Cursor {
    int slot = 0;
    uint32_t parity = 0;  // of the barriers' phases in this round

    __device__ __forceinline__ void advance() {
      if (++slot < kSlots) return;
      slot = 0;
      parity ^= 1;
    }
  };

  uint32_t base;  // address in shared memory

  __device__ __forceinline__ uint32_t queries(int group) const {
    return base + group * kQueryBytes;
  }
  __device__ __forceinline__ uint32_t queries_full() const { return base + kQueriesAt; }
  __device__ __forceinline__ uint32_t slot(const Cursor& at) const {
    return base + kSlotsAt + at.slot * kSlotBytes;
  }
  __device__ __forceinline__ uint32_t full(const Cursor& at) const {
    return base + kFullAt + 8 * at.slot;
  }
  __device__ __forceinline__ uint32_t empty(const Cursor& at) const {
    return base + kEmptyAt + 8 * at.slot;
  }

  // By one thread.
  __device__ __forceinline__ void init() const {
    for (Cursor at; at.slot < kSlots; ++at.slot) {
      hopper::mbarrier_init(full(at), 1);
      hopper::mbarrier_init(empty(at), kGroups * 4);
    }
    hopper::mbarrier_init(queries_full(), 1);
    hopper::mbarrier_init_fence();
  }

  __device__ __forceinline__ void wait(const Cursor& at) const {
    hopper::mbarrier_wait(full(at), at.parity);
  }
  // By each warp of the warpgroups, when it has read what lies there.
  __device__ __forceinline__ void release(const Cursor& at) const {
    if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(empty(at));
  }

  // By one warp. tiles: of positions; pages: the sequence's ids, of which last_page is the last
  // that any row sees. What lies behind it arrives as zeros.
  template <typename T>
  __device__ __forceinline__ void fill(const PrefillMaps& maps, const AttentionView<T>& view,
                                       const int32_t* pages, int64_t token, int head, int tiles,
                                       int last_page) const {
    constexpr int kPages = kWgmmaTile / kPageTokens;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int kv_head = head / view.group();
    // Lane i: the first row of the tile's page i in the cache, or the one behind the cache's last.
    const auto rows_of = [&](int tile) {
      const int page = tile * kPages + lane;
      if (lane >= kPages || page > last_page) return maps.rows;
      return (pages[page] * view.kv_heads + kv_head) * kPageTokens;
    };
    Cursor at;
    const auto copy = [&](const CUtensorMap& map, int rows) {
      hopper::mbarrier_wait(empty(at), at.parity ^ 1);
      if (lane == 0) hopper::mbarrier_arrive_expecting(full(at), kSlotBytes);
#pragma unroll
      for (int page = 0; page < kPages; ++page) {
        const int row = __shfl_sync(0xffffffffu, rows, page);
        if (lane != 0) continue;
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          hopper::copy_tensor(slot(at) + (panel * kWgmmaTile + page * kPageTokens) * 128, map,
                              full(at), panel * 64, row);
        }
      }
      __syncwarp();
      at.advance();
    };
    if (lane == 0) {
      hopper::mbarrier_arrive_expecting(queries_full(), kGroups * kQueryBytes);
      for (int group = 0; group < kGroups; ++group) {
        for (int panel = 0; panel < kPanels; ++panel) {
          hopper::copy_tensor(queries(group) + panel * kWgmmaRows * 128, maps.q, queries_full(),
                              head * kDim + panel * 64,
                              static_cast<int>(token) + group * kWgmmaRows);
        }
      }
    }
    int rows = rows_of(0), next = rows_of(1);
    copy(maps.k, rows);
    for (int tile = 1; tile < tiles; ++tile) {
      copy(maps.k, next);
      const int after = rows_of(tile + 1);
      copy(maps.v, rows);
      rows = next;
      next = after;
    }
    copy(maps.v, rows);
  }
};

}  // namespace flexq_ft::gpu
