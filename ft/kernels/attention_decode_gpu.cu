#include <algorithm>

#include "ft/kernels/attention_combine.cuh"
#include "ft/kernels/attention_decode_tasks.cuh"

namespace flexq_ft::gpu {

namespace {

constexpr int kDecodeBlocks = 2;  // of a multiprocessor

// A warp's share of the tasks, as wide as the grid; the grid does not depend on contexts: a
// captured step is replayed as they grow. Pages that the kernel in front appends nothing to are on
// their way before it has ended.
template <typename T, int kDim>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks)
    attention_decode_kernel(AttentionView<T> view, DecodeParts parts, int sequences,
                            int head_blocks) {
  using Warp = DecodeWarp<T, kDim>;
  using Ring = DecodeRing<kDim>;
  extern __shared__ uint4 decode_shared[];
  pdl_launch_dependents();
  DecodeTasks<T> tasks(view, sequences, head_blocks, parts.limit,
                       static_cast<int>(blockIdx.x * kDecodeWarps + threadIdx.x / 32),
                       static_cast<int>(gridDim.x) * kDecodeWarps);
  if (!tasks.more()) return pdl_wait();
  Ring ring(decode_shared);
  DecodeCopy<T, kDim> copy(tasks, ring);
#pragma unroll
  for (int i = 0; i < Ring::kSlots; ++i) {
    if (copy.at_last_page()) pdl_wait();
    if (i % 2 == 0) {
      copy.template next<false>();
    } else {
      copy.template next<true>();
    }
  }
  pdl_wait();
  const auto wait = [] {  // for the slot that is next
    wait_copies<Ring::kSlots - 1>();
    __syncwarp();
  };
  const auto free = [&] {
    __syncwarp();
    ring.advance();
  };
  const auto load_q = [&](uint4(&q)[Warp::kSteps], const DecodeTask& task) {
    Warp::load_q(q, view.q + tasks.row(task) * view.head_dim, tasks.heads(task), view.head_dim);
  };
  constexpr bool kAhead = kDim <= 128;  // are there registers for the next task and its queries?
  uint4 q[Warp::kSteps];
  if (kAhead) load_q(q, tasks.task);
  while (true) {
    const DecodeTask task = tasks.task;
    Warp warp;
    warp.clear();
    if (!kAhead) load_q(q, task);
#pragma unroll
    for (int j = 0; j < Warp::kSteps; ++j) warp.q[j] = q[j];
    if (kAhead) {
      tasks.advance();
      if (tasks.more()) load_q(q, tasks.task);
    }
    for (int index = task.first; index < task.end; ++index) {
      float p[4];
      wait();
      warp.scores(p, ring);
      free();
      copy.template next<true>();
      warp.softmax(p, task.length - index * kPageTokens, view.scale);
      wait();
      warp.add_values(p, ring);
      free();
      copy.template next<false>();
    }
    warp.store(parts, tasks.row(task), tasks.heads(task), task.part, view.head_dim);
    if (!kAhead) tasks.advance();
    if (!tasks.more()) return;
  }
}

template <typename T>
void launch_decode(const AttentionView<T>& view, const DecodeParts& parts, int64_t decodes,
                   Stream stream) {
  const int head_blocks = head_blocks_of(view.heads, view.kv_heads);
  const int64_t tasks = decodes * head_blocks * parts.most;
  FLEXQ_FT_CHECK_LE(decodes * head_blocks * view.max_pages, int64_t{2147483647},
                    "attention: pages of ", decodes,
                    " sequences, a KV head and eight queries each");
  int device = 0, multiprocessors = 0;
  FLEXQ_FT_CUDA(cudaGetDevice(&device));
  FLEXQ_FT_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t blocks = std::min<int64_t>((tasks + kDecodeWarps - 1) / kDecodeWarps,
                                           static_cast<int64_t>(multiprocessors) * kDecodeBlocks);
  const auto run = [&](auto* kernel, int ring_bytes) {
    const size_t shared = static_cast<size_t>(kDecodeWarps) * ring_bytes;
    allow_shared_memory(kernel, shared);
    launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kDecodeThreads), shared, stream, view,
           parts, static_cast<int>(decodes), head_blocks);
  };
  if (view.head_dim <= 64) {
    run(attention_decode_kernel<T, 64>, DecodeRing<64>::kWarpBytes);
  } else if (view.head_dim <= 128) {
    run(attention_decode_kernel<T, 128>, DecodeRing<128>::kWarpBytes);
  } else {
    run(attention_decode_kernel<T, 256>, DecodeRing<256>::kWarpBytes);
  }
}

}  // namespace

bool decode_quantizes(const LinearInput& out, int64_t heads, int64_t head_dim) {
  if (!out.quantized() || out.group % 4 != 0 || out.static_scale > 0.0f) return false;
  const int width = static_cast<int>(out.group), most = CombineShape::part_limit(width);
  const size_t shared = CombineShape(width, most).shared_bytes(most, static_cast<int>(head_dim));
  return shared <= 48 * 1024 - 256 && heads > 0;
}

bool attention_decode(const LinearInput& out, ConstTensor q, const KvPages& kv,
                      const RaggedBatch& batch, Tensor workspace, Stream stream) {
  const int64_t decodes = q.dim(0);
  const int64_t columns = q.dim(1);
  const int64_t head_dim = kv.k.dim(3);
  const int64_t heads = columns / head_dim;
  FLEXQ_FT_CHECK_LE(decodes, 65535, "attention: one-token sequences");
  const AttentionSizes sizes{decodes, heads, kv.k.dim(1), head_dim,
                             batch.pages.dim(1) * kPageTokens};
  FLEXQ_FT_CHECK_LE(DecodeParts::bytes(sizes), workspace.bytes(), "attention: workspace for ",
                    decodes, " tokens");
  const bool quantizes = decode_quantizes(out, heads, head_dim);
  LinearInput made = out;
  if (!quantizes) made.codes = made.scales = Tensor();
  const int64_t width = quantizes ? out.group : std::min<int64_t>(kCombineColumns, columns);
  const DecodeParts parts(workspace.raw(), sizes,
                          CombineShape::part_limit(static_cast<int>(width)));
  const dim3 grid(static_cast<unsigned>((columns + width - 1) / width),
                  static_cast<unsigned>(decodes));
  dispatch_16_bit(q.dtype(), [&](auto type) {
    using T = decltype(type);
    const AttentionView<T> view(q, kv, batch);
    launch_decode(view, parts, decodes, stream);
    const CombineShape shape(static_cast<int>(width), parts.most);
    const auto combine = [&](auto* kernel) {
      launch(kernel, grid, dim3(static_cast<unsigned>(shape.slices * shape.threads)),
             shape.shared_bytes(parts.most, view.head_dim), stream, view, parts,
             AttentionOut<T>(made, columns), shape);
    };
    if (shape.slices > 1) {
      combine(attention_combine_kernel<T, true>);
    } else {
      combine(attention_combine_kernel<T, false>);
    }
  });
  return quantizes;
}

}  // namespace flexq_ft::gpu
