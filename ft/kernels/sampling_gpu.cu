// Sampling in two kernels: thread blocks over chunks of every row leave what a greedy choice and
// the log-probability need; then one thread block per row chooses and moves the slot on.
#include "ft/kernels/launch.cuh"
#include "ft/kernels/sampling_draw_gpu.cuh"
#include "ft/kernels/sampling_gpu.cuh"

namespace flexq_ft::gpu {

namespace {

constexpr int kChunkThreads = 256;
constexpr int kChunkWarps = kChunkThreads / kWarp;
constexpr int kChunkLogits = kSampleChunk / kChunkThreads;  // of one thread

// Grid (chunks of the vocabulary, rows). Logits that a draw will need are left in changed
// [rows, vocab] if parameters change them.
__global__ void __launch_bounds__(kChunkThreads)
    sample_chunks(RowPartial* partials, float* changed, const float* logits, int vocab,
                  const int32_t* row_slots, SlotsView slots) {
  __shared__ ChunkMarks marks;
  __shared__ RowPartial of_warp[kChunkWarps];
  pdl_launch_dependents();
  pdl_wait();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.y;
  const int first_id = static_cast<int>(blockIdx.x) * kSampleChunk;
  float x[kChunkLogits];
#pragma unroll
  for (int i = 0; i < kChunkLogits; ++i) {
    const int id = first_id + i * kChunkThreads + thread;
    x[i] = id < vocab ? logits[row * vocab + id] : -INFINITY;
  }
  const int32_t slot = row_slots[row];
  if (slots.idle(slot)) return;
  const SlotParams& p = slots.params[slot];
  const int32_t count = slots.tokens[slot];
  const bool adjust = adjusts(p, count - p.prompt_tokens);
  const bool keep = adjust && !is_greedy(p);
  if (adjust) {
    mark_chunk(marks, first_id, p, slots.words_of(slot), slots.history_of(slot), count);
  }
  RowPartial own = nothing_yet();
#pragma unroll
  for (int i = 0; i < kChunkLogits; ++i) {
    const int at = i * kChunkThreads + thread, id = first_id + at;
    if (id >= vocab) continue;
    if (!isfinite(x[i])) own.bad = min(own.bad, id);
    own.top = fmaxf(own.top, x[i]);
    float y = x[i];
    if (adjust) y = adjusted(y, p, marked(marks.seen, at), marked(marks.masked, at));
    if (keep) changed[row * vocab + id] = y;
    take_better(own, y, id);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kChunkLogits; ++i) {
    if (x[i] > -INFINITY) sum += expf(x[i] - own.top);
  }
  own.sum = sum;
  own = reduce_warp(own);
  if (thread % kWarp == 0) of_warp[thread / kWarp] = own;
  __syncthreads();
  if (thread >= kWarp) return;
  RowPartial lane_partial = nothing_yet();
  if (thread < kChunkWarps) lane_partial = of_warp[thread];
  own = reduce_warp(lane_partial);
  if (thread == 0) partials[row * gridDim.x + blockIdx.x] = own;
}

// Grid (rows).
__global__ void __launch_bounds__(kDrawThreads)
    sample_finish(DeviceSample* out, const RowPartial* partials, int chunks, const float* changed,
                  const float* logits, int vocab, const int32_t* row_slots, SlotsView slots) {
  __shared__ DrawShared shared;
  __shared__ RowPartial of_row;
  pdl_launch_dependents();
  pdl_wait();
  const int64_t at = blockIdx.x;
  const int32_t slot = row_slots[at];
  const bool first_warp = threadIdx.x < kWarp;
  if (slots.idle(slot)) {
    if (threadIdx.x == 0) store_sample(out + at, slot, 0, 0.0f, kSampleIdle);
    return;
  }
  const SlotParams& p = slots.params[slot];
  const bool greedy = is_greedy(p);
  if (greedy && !first_warp) return;
  const int32_t generated = slots.tokens[slot] - p.prompt_tokens;
  const float* row_logits = logits + at * vocab;
  RowPartial row = nothing_yet();
  if (first_warp) row = reduce_row(partials + at * chunks, chunks);
  if (!greedy) {
    if (threadIdx.x == 0) of_row = row;
    __syncthreads();
    row = of_row;
  }
  if (fault_of(row) != kSampleOk) {
    if (threadIdx.x == 0) store_fault(out + at, slots, slot, row, row_logits);
    return;
  }
  int token = row.best_id;
  if (!greedy) {
    const float* drawn_from = adjusts(p, generated) ? changed + at * vocab : row_logits;
    token = draw_token(DrawRow{drawn_from, vocab, row.best}, shared, p, generated);
    if (!first_warp) return;
  }
  if (threadIdx.x == 0) {
    const double log_sum = static_cast<double>(row.top) + log(row.sum);
    const float logprob = static_cast<float>(static_cast<double>(row_logits[token]) - log_sum);
    store_sample(out + at, slot, token, logprob, kSampleOk);
  }
  append_token(slots, slot, token);
}

}  // namespace

void sample(Tensor out, Tensor logits, ConstTensor row_slots, const DeviceSlots& slots,
            Tensor workspace, Stream stream) {
  const int64_t rows = logits.dim(0);
  const int vocab = static_cast<int>(logits.dim(1));
  const int chunks = (vocab + kSampleChunk - 1) / kSampleChunk;
  auto* partials = static_cast<RowPartial*>(workspace.raw());
  auto* changed = reinterpret_cast<float*>(partials + rows * chunks);
  const SlotsView view(slots);
  launch(sample_chunks, dim3(chunks, rows), dim3(kChunkThreads), 0, stream, partials, changed,
         logits.data<float>(), vocab, row_slots.data<int32_t>(), view);
  launch(sample_finish, dim3(rows), dim3(kDrawThreads), 0, stream,
         static_cast<DeviceSample*>(out.raw()), partials, chunks, changed, logits.data<float>(),
         vocab, row_slots.data<int32_t>(), view);
}

}  // namespace flexq_ft::gpu
