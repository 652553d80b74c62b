// Prefill attention on Hopper. A block has kGroups times 64 queries of a head:
//
//   warpgroup 0   copies, and looks for values that are not finite (attention_prefill_ring.cuh)
//   warpgroup 1…  64 queries each. Two take turns: while one computes exponentials the other one's
//                 products are on the tensor cores.
#include <cstring>
#include <stdexcept>

#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/tensor_map.h"
#include "ft/core/cuda.h"
#include "ft/kernels/attention_prefill_ring.cuh"

namespace flexq_ft::gpu {

namespace {

template <int kGroups>
constexpr int kWgmmaThreads = 128 + kGroups * 128;
template <int kGroups>
constexpr int kWgmmaBlocks = kGroups == 1 ? 2 : 1;  // of a multiprocessor

// Registers of a thread: those that all start with, and what the warps that copy leave of them to
// the warpgroups, which would wait without end for more.
template <int kGroups>
struct WgmmaRegisters {
  static constexpr int kStart = 65536 / (kWgmmaBlocks<kGroups> * kWgmmaThreads<kGroups>) / 8 * 8;
  static constexpr int kCopy = 40;
  static constexpr int kCompute = kStart + (kStart - kCopy) / kGroups / 8 * 8;
};

// Numbers of named barriers; turns and rows: one for each warpgroup.
enum Barrier { kTurn = 1, kAllRows = 3, kRows = 4 };

// The part of a block that computes.
template <typename T, int kDim, int kGroups>
struct PrefillConsumer {
  using Ring = PrefillRing<kDim, kGroups>;
  static constexpr int kThreads = kGroups * 128;

  const Ring& ring;
  unsigned char* memory;  // where the ring is
  int group;              // this warpgroup
  int position;           // of the block's first row
  float scale;

  __device__ __forceinline__ void begin_turn() const {
    if constexpr (kGroups == 2) barrier_sync(kTurn + group, kThreads);
  }
  // The other one's. The last turn of all has none behind it.
  __device__ __forceinline__ void end_turn(bool last) const {
    if constexpr (kGroups == 2) {
      if (group == 0 || !last) barrier_arrive(kTurn + 1 - group, kThreads);
    }
  }

  // Of a tile of values that some row does not see wholly: what is not finite becomes zero, and is
  // added to the rows that see it. No product of values is under way.
  __device__ __forceinline__ void make_finite(PrefillWarpgroup<T, kDim>& rows,
                                              const typename Ring::Cursor& at, int tile) const {
    hopper::mbarrier_wait(ring.checked(tile), 0);
    const uint32_t* marks = Ring::marks(memory, tile);
    if ((marks[0] | marks[1] | marks[2] | marks[3]) == 0) return;
    unsigned char* v = memory + Ring::slot_at(at);
    rows.add_not_finite(v, marks, tile * kWgmmaTile - position - group * kWgmmaRows);
    barrier_sync(kAllRows, kThreads);
    const int row = static_cast<int>(threadIdx.x) - 128;
    if (row < kWgmmaTile && (marks[row / 32] >> row % 32 & 1) != 0) {
#pragma unroll 1
      for (int i = 0; i < kDim / 8; ++i) {
        uint4* const eight = Ring::eight(v, row, i);
        const auto finite = [](uint32_t pair) {
          return pair & ~((not_finite(pair, T{}) >> 15) * 0xffffu);
        };
        *eight = {finite(eight->x), finite(eight->y), finite(eight->z), finite(eight->w)};
      }
    }
    hopper::copies_see_writes();
    barrier_sync(kAllRows, kThreads);
  }

  // The rows' sums over `tiles` tiles, not yet divided.
  __device__ __forceinline__ void run(PrefillWarpgroup<T, kDim>& rows, int tiles) const {
    const int mine = position + group * kWgmmaRows;  // position of the warpgroup's first row
    const uint32_t q = ring.queries(group);
    const auto exponentials = [&](int tile) {
      if (!sees_all_of(tile, mine)) rows.mask(tile * kWgmmaTile - mine);
      rows.softmax(scale);
    };
    const auto finite_values = [&](int tile, const typename Ring::Cursor& at) {
      ring.wait(at);
      if (!sees_all_of(tile, position)) make_finite(rows, at, tile);
    };
    rows.clear();
    if (group == 1) end_turn(false);  // the first turn is the first warpgroup's
    typename Ring::Cursor at;
    hopper::mbarrier_wait(ring.queries_full(), 0);
    ring.wait(at);
    begin_turn();
    rows.begin_scores(q, ring.slot(at));
    end_turn(tiles == 1);
    wgmma_wait<0>();
    fence_sums(rows.s);
    ring.release(at);
    at.advance();
    exponentials(0);
    ring.wait(at);
    rows.rebase();
#pragma unroll 1
    for (int tile = 1; tile < tiles; ++tile) {
      const typename Ring::Cursor keys = at;
      at.advance();
      finite_values(tile - 1, at);
      begin_turn();
      rows.begin_scores(q, ring.slot(keys));
      rows.begin_values(ring.slot(at));
      end_turn(tile + 1 == tiles);
      wgmma_wait<1>();
      fence_sums(rows.s);
      ring.release(keys);
      exponentials(tile);
      fence_sums(rows.s);
      typename Ring::Cursor next = at;
      next.advance();
      // Here, since the assembler would wait for the values' product before the exponentials
      // were it not for a branch between them.
      ring.wait(next);
      wgmma_wait<0>();
      fence_sums(rows.o);
      ring.release(at);
      at = next;
      rows.rebase();
    }
    finite_values(tiles - 1, at);
    rows.begin_values(ring.slot(at));
    wgmma_wait<0>();
    fence_sums(rows.o);
  }
};

// Blocks: (query head, tile of queries); the last tiles, which see most, first.
template <typename T, int kDim, int kGroups>
__global__ void __launch_bounds__(kWgmmaThreads<kGroups>, kWgmmaBlocks<kGroups>)
    attention_prefill_wgmma_kernel(const __grid_constant__ PrefillMaps maps, AttentionView<T> view,
                                   AttentionOut<T> out, int decodes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Ring = PrefillRing<kDim, kGroups>;
  extern __shared__ __align__(1024) unsigned char wgmma_shared[];
  const Ring ring{hopper::shared_address(wgmma_shared)};
  pdl_launch_dependents();
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&maps.q, &maps.k, &maps.v}) hopper::prefetch_tensor_map(*map);
    ring.init();
  }
  pdl_wait();
  const int index = static_cast<int>(gridDim.y - 1 - blockIdx.y);
  const PrefillTile tile = find_prefill_tile(view, decodes, kGroups * kWgmmaRows, index);
  if (tile.rows <= 0) return;
  __syncthreads();
  const int head = static_cast<int>(blockIdx.x);
  const int end = tile.position + tile.rows;  // of the positions that any row sees
  const int tiles = (end + kWgmmaTile - 1) / kWgmmaTile;
  if (threadIdx.x < 128) {
    hopper::keep_registers<WgmmaRegisters<kGroups>::kCopy>();
    const int32_t* pages = view.pages + static_cast<int64_t>(tile.sequence) * view.max_pages;
    if (threadIdx.x % 32 == 0) {
      ring.fill(maps, pages, tile.token, head, head / view.group(), view.kv_heads, tiles,
                (end - 1) / kPageTokens);
    }
    __syncwarp();
    for (int t = max(tiles - 2, 0); t < tiles; ++t) {
      if (!sees_all_of(t, tile.position)) ring.template check<T>(wgmma_shared, t, tiles, end);
    }
  } else {
    hopper::take_registers<WgmmaRegisters<kGroups>::kCompute>();
    // From one lane, so that the compiler knows it to be uniform.
    const int group =
        kGroups == 1 ? 0 : __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
    PrefillWarpgroup<T, kDim> rows;
    PrefillConsumer<T, kDim, kGroups>{ring, wgmma_shared, group, tile.position, view.scale}.run(
        rows, tiles);
    unsigned char* const queries = wgmma_shared + group * Ring::kQueryBytes;
    barrier_sync(kRows + group, 128);  // all its warps have used the queries
    rows.store_rows(queries);
    __syncwarp();
    const auto at = [&](int row, int column) {
      return reinterpret_cast<const uint4*>(
          queries + panel_byte(rows.kQueryPanel, 1024, row % kWgmmaRows, column));
    };
    write_prefill_rows<T, kDim>(at, tile, out, head, kDim, group * kWgmmaRows + rows.first_row(),
                                16);
  }
#endif
}

PrefillMaps make_maps(ConstTensor q, const KvPages& kv) {
  const bool bf16 = q.dtype() == DataType::kBf16;
  const int64_t row = kv.k.dim(3) * 2;  // bytes
  const int64_t panels = kv.k.dim(3) / 64;
  const int64_t rows8 = kv.k.dim(0) * kv.k.dim(1) * kPageTokens / 8;
  const auto encode = [&](const char* what, const void* data,
                          std::initializer_list<flexq_kernels::gpu::TensorAxis> axes) {
    return flexq_kernels::gpu::encode_tensor_map(
        what, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        CU_TENSOR_MAP_SWIZZLE_128B, data, axes);
  };
  const auto encode_pages = [&](const char* what, const void* data) {
    return encode(what, data,
                  {{64, 2, 64}, {8, row, 8}, {panels, 128, panels}, {rows8, 8 * row, 2}});
  };
  try {
    return {
        encode("queries", q.raw(),
               {{64, 2, 64}, {q.dim(0), q.dim(1) * 2, kWgmmaRows}, {q.dim(1) / 64, 128, panels}}),
        encode_pages("cached keys", kv.k.raw()), encode_pages("cached values", kv.v.raw())};
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kDevice, error.what());
  }
}

template <typename T, int kDim, int kGroups>
void launch_wgmma(const PrefillMaps& maps, const AttentionView<T>& view, const AttentionOut<T>& out,
                  int64_t tiles, int64_t decodes, Stream stream) {
  constexpr size_t kShared = PrefillRing<kDim, kGroups>::kBytes;
  static_assert(kWgmmaBlocks<kGroups> * (kShared + 1024) <= 228 * 1024);  // 1 KB is the driver's
  FLEXQ_FT_CHECK_LE(tiles, 65535, "attention: tiles of ", kGroups * kWgmmaRows, " queries");
  auto* kernel = attention_prefill_wgmma_kernel<T, kDim, kGroups>;
  allow_shared_memory(kernel, kShared);
  launch(kernel, dim3(static_cast<unsigned>(view.heads), static_cast<unsigned>(tiles)),
         dim3(kWgmmaThreads<kGroups>), kShared, stream, maps, view, out, static_cast<int>(decodes));
}

template <typename T, int kDim>
void pick_groups(const LinearInput& out, ConstTensor q, const KvPages& kv, const RaggedBatch& batch,
                 Stream stream) {
  const PrefillMaps maps = make_maps(q, kv);
  const AttentionView<T> view(q, kv, batch);
  const AttentionOut<T> to(out, q.dim(1));
  // As many as there can be: each sequence's last tile may hold one row. Exact for one sequence.
  const auto tiles = [&](int64_t rows) {
    return (q.dim(0) - batch.decodes + (view.sequences - batch.decodes) * (rows - 1)) / rows;
  };
  // Tiles of 64 where no sequence has more, or where all of them run at once, two on each
  // multiprocessor; a row's bits are the same.
  const int64_t at_once = 2 * int64_t{flexq_kernels::gpu::current_device().multiprocessors};
  if (batch.longest <= kWgmmaRows || tiles(kWgmmaRows) * view.heads <= at_once) {
    return launch_wgmma<T, kDim, 1>(maps, view, to, tiles(kWgmmaRows), batch.decodes, stream);
  }
  launch_wgmma<T, kDim, 2>(maps, view, to, tiles(2 * kWgmmaRows), batch.decodes, stream);
}

}  // namespace

bool wgmma_prefill_takes(DataType dtype, int64_t head_dim) {
  return dtype != DataType::kFp32 && (head_dim == 64 || head_dim == 128) &&
         flexq_kernels::gpu::current_device().capability() == 90 &&
         std::strstr(cuda::architectures(), "90a") != nullptr;
}

void attention_prefill_wgmma(const LinearInput& out, ConstTensor q, const KvPages& kv,
                             const RaggedBatch& batch, Stream stream) {
  dispatch_16_bit(q.dtype(), [&](auto type) {
    using T = decltype(type);
    if (kv.k.dim(3) == 64) return pick_groups<T, 64>(out, q, kv, batch, stream);
    pick_groups<T, 128>(out, q, kv, batch, stream);
  });
}

}  // namespace flexq_ft::gpu
