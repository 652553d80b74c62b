#include <algorithm>

#include "ft/kernels/attention_prefill.cuh"

namespace flexq_ft::gpu {

namespace {

// Blocks: (query head, tile of queries); the last tiles, which see most, first.
template <typename T, int kDim, int kBlocks>
__global__ void __launch_bounds__(kPrefillThreads, kDim > 128 ? 1 : 2)
    attention_prefill_kernel(AttentionView<T> view, AttentionOut<T> out, int decodes) {
  using Shape = PrefillShape<kDim>;
  constexpr int kRows = kPrefillWarps * kBlocks * 16;
  extern __shared__ uint4 prefill_shared[];
  pdl_launch_dependents();
  pdl_wait();
  const int index = static_cast<int>(gridDim.y - 1 - blockIdx.y);
  const PrefillTile tile = find_prefill_tile(view, decodes, kRows, index);
  if (tile.rows <= 0) return;
  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / view.group();
  const int end = tile.position + tile.rows;  // of the positions that any row sees
  const int tiles = (end + Shape::kTile - 1) / Shape::kTile;
  const int last_page = (end - 1) / kPageTokens;
  const int32_t* table = view.pages + static_cast<int64_t>(tile.sequence) * view.max_pages;
  T* q = reinterpret_cast<T*>(prefill_shared);
  // Page ids of tiles j and j + 1 lie in the 16 bytes behind the first two rows of queries.
  const auto pages_of = [&](int j) {
    return reinterpret_cast<int*>(q + j % 2 * Shape::kStride + kDim);
  };
  T* const cache = q + kRows * Shape::kStride;
  const auto k_of = [&](int j) { return cache + j % 2 * Shape::kTile * Shape::kStride; };
  const auto v_of = [&](int j) { return k_of(j) + 2 * Shape::kTile * Shape::kStride; };
  const int me = static_cast<int>(threadIdx.x);
  const auto page_of = [&](int j) { return table[min(j * Shape::kPages + me, last_page)]; };

  for (int i = me; i < kRows * Shape::kWords; i += kPrefillThreads) {
    const int row = i / Shape::kWords;
    const int column = i % Shape::kWords * 8;
    const bool there = row < tile.rows && column < view.head_dim;
    const int64_t from = ((tile.token + row) * view.heads + head) * view.head_dim + column;
    copy_async_or_zero<16>(shared_address(q + row * Shape::kStride + column),
                           view.q + (there ? from : 0), there);
  }
  if (me < Shape::kPages) {
    pages_of(0)[me] = page_of(0);
    pages_of(1)[me] = page_of(1);
  }
  __syncthreads();
  load_prefill_tile<T, kDim>(k_of(0), v_of(0), view, pages_of(0), kv_head, 0, end);
  commit_copies();

  PrefillWarp<T, kDim, kBlocks> warp;
  warp.clear();
  for (int j = 0; j < tiles; ++j) {
    wait_copies<0>();
    __syncthreads();  // tile j is there; tile j - 1 was used, and the pages of j + 1 are set
    int page = 0;
    if (j + 1 < tiles) {
      const int first = (j + 1) * Shape::kTile;
      load_prefill_tile<T, kDim>(k_of(j + 1), v_of(j + 1), view, pages_of(j + 1), kv_head, first,
                                 end);
      commit_copies();
      if (me < Shape::kPages) page = page_of(j + 2);
    }
    const int ahead = j * Shape::kTile - tile.position;  // of the block's first row
    const int mine = ahead - warp.first_row();           // of the warp's
    const bool all_seen = ahead + Shape::kTile <= 1;     // by the block's first row, so by all
    const bool any_seen = mine < kBlocks * 16;           // by the warp's last row
    if (any_seen) {
      warp.scores(q, k_of(j));
      if (!all_seen) warp.mask(mine);
      warp.softmax(view.scale);
    }
    if (!all_seen && any_not_finite<T, kDim>(v_of(j))) {
      warp.add_not_finite(v_of(j), mine);
      __syncthreads();
      clear_not_finite<T, kDim>(v_of(j));
      __syncthreads();
    }
    if (any_seen) warp.add_values(v_of(j));
    // The pages of tile j were last read before this round's barrier.
    if (me < Shape::kPages) pages_of(j)[me] = page;
  }
  __syncwarp();
  warp.store_rows(q);  // over the warp's own queries
  __syncwarp();
  const auto at = [&](int row, int column) {
    return reinterpret_cast<const uint4*>(q + row * Shape::kStride + column);
  };
  write_prefill_rows<T, kDim>(at, tile, out, head, view.head_dim, warp.first_row(), kBlocks * 16);
}

template <typename T, int kDim, int kBlocks>
void launch_prefill(const AttentionView<T>& view, const AttentionOut<T>& out, int64_t tokens,
                    int64_t decodes, Stream stream) {
  constexpr int kRows = kPrefillWarps * kBlocks * 16;
  constexpr size_t kShared = PrefillShape<kDim>::shared_bytes(kRows);
  auto* kernel = attention_prefill_kernel<T, kDim, kBlocks>;
  allow_shared_memory(kernel, kShared);
  // As many as there can be: each sequence's last tile may hold one row. Exact for one sequence.
  const int64_t sequences = view.sequences - decodes;
  const int64_t tiles = (tokens - decodes + sequences * (kRows - 1)) / kRows;
  FLEXQ_FT_CHECK_LE(tiles, 65535, "attention: tiles of ", kRows, " queries");
  launch(kernel, dim3(static_cast<unsigned>(view.heads), static_cast<unsigned>(tiles)),
         dim3(kPrefillThreads), kShared, stream, view, out, static_cast<int>(decodes));
}

template <typename T, int kDim>
void pick_rows(const AttentionView<T>& view, const AttentionOut<T>& out, int64_t tokens,
               int64_t decodes, Stream stream) {
  if constexpr (kDim <= 128) {
    int device = 0, shared = 0;
    FLEXQ_FT_CUDA(cudaGetDevice(&device));
    FLEXQ_FT_CUDA(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    const bool fits = PrefillShape<kDim>::shared_bytes(128) <= static_cast<size_t>(shared);
    // Tiles of 128 read shared memory less; tiles of 64 are more blocks. A row's bits are the same.
    constexpr int64_t kBlocksWanted = 256;
    if (fits && (tokens - decodes) / 128 * view.heads >= kBlocksWanted) {
      return launch_prefill<T, kDim, 2>(view, out, tokens, decodes, stream);
    }
  }
  launch_prefill<T, kDim, 1>(view, out, tokens, decodes, stream);
}

}  // namespace

bool prefill_quantizes(const LinearInput& out, int64_t head_dim) {
  return out.quantized() && out.group == head_dim && out.static_scale == 0.0f &&
         (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

bool attention_prefill(const LinearInput& out, ConstTensor q, const KvPages& kv,
                       const RaggedBatch& batch, Stream stream) {
  const int64_t tokens = q.dim(0);
  const int64_t head_dim = kv.k.dim(3);
  const bool quantizes = prefill_quantizes(out, head_dim);
  LinearInput made = out;
  if (!quantizes) made.codes = made.scales = Tensor();
  if (wgmma_prefill_takes(q.dtype(), head_dim)) {
    attention_prefill_wgmma(made, q, kv, batch, stream);
    return quantizes;
  }
  dispatch_16_bit(q.dtype(), [&](auto type) {
    using T = decltype(type);
    const AttentionView<T> view(q, kv, batch);
    const AttentionOut<T> to(made, q.dim(1));
    if (head_dim <= 64) return pick_rows<T, 64>(view, to, tokens, batch.decodes, stream);
    if (head_dim <= 96) return pick_rows<T, 96>(view, to, tokens, batch.decodes, stream);
    if (head_dim <= 128) return pick_rows<T, 128>(view, to, tokens, batch.decodes, stream);
    pick_rows<T, 256>(view, to, tokens, batch.decodes, stream);
  });
  return quantizes;
}

}  // namespace flexq_ft::gpu
