// Sampling, device functions: what a slot's parameters do to a logit, how a token is chosen
// greedily, and what happens to the slot then. The draw is in sampling_draw_gpu.cuh.
#pragma once

#include <climits>
#include <cstdint>

#include "ft/kernels/device_sampling.h"

namespace flexq_ft::gpu {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// DeviceSlots as a kernel takes it.
struct SlotsView {
  const SlotParams* params;
  int32_t* history;
  int32_t* tokens;
  int32_t* finished;
  const int32_t* words;
  int32_t slots;
  int32_t max_len;  // ids of a row of history

  explicit SlotsView(const DeviceSlots& s)
      : params(static_cast<const SlotParams*>(s.params.raw())),
        history(static_cast<int32_t*>(s.history.raw())),
        tokens(static_cast<int32_t*>(s.tokens.raw())),
        finished(static_cast<int32_t*>(s.finished.raw())),
        words(static_cast<const int32_t*>(s.words.raw())),
        slots(static_cast<int32_t>(s.tokens.dim(0))),
        max_len(static_cast<int32_t>(s.history.dim(1))) {}

  __device__ bool idle(int32_t slot) const {
    return slot < 0 || slot >= slots || finished[slot] != 0;
  }
  __device__ int32_t* history_of(int32_t slot) const {
    return history + static_cast<int64_t>(slot) * max_len;
  }
  __device__ const int32_t* words_of(int32_t slot) const {
    return words + static_cast<int64_t>(slot) * kWordInts;
  }
};

__device__ __forceinline__ bool is_greedy(const SlotParams& p) {
  return p.temperature == 0.0 || p.top_k == 1 || (p.top_k == 0 && p.top_p == 0.0);
}
__device__ __forceinline__ bool divides(const SlotParams& p) {
  return p.temperature != 0.0 && p.temperature != 1.0;
}
__device__ __forceinline__ bool penalises(const SlotParams& p) {
  return p.repetition_penalty != 1.0 || p.presence_penalty != 0.0;
}
__device__ __forceinline__ bool holds_back(const SlotParams& p, int32_t generated) {
  return p.mask_ids > 0 && generated < p.min_tokens;
}
// Whether some logit is other than the model's.
__device__ __forceinline__ bool adjusts(const SlotParams& p, int32_t generated) {
  return divides(p) || penalises(p) || p.bad_words > 0 || holds_back(p, generated);
}

// What the history and the words say about the tokens of one chunk, a bit for each.
struct ChunkMarks {
  uint32_t seen[kSampleChunk / 32];
  uint32_t masked[kSampleChunk / 32];
};

__device__ __forceinline__ void mark(uint32_t* bits, int32_t first_id, int32_t id) {
  const uint32_t at = static_cast<uint32_t>(id) - static_cast<uint32_t>(first_id);
  if (at < kSampleChunk) atomicOr(&bits[at / 32], 1u << (at % 32));
}
__device__ __forceinline__ bool marked(const uint32_t* bits, int32_t at) {
  return ((bits[at / 32] >> (at % 32)) & 1u) != 0;
}

// By all threads of a block; synchronises.
__device__ inline void mark_chunk(ChunkMarks& marks, int32_t first_id, const SlotParams& p,
                                  const int32_t* words, const int32_t* history, int32_t count) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < kSampleChunk / 32; i += threads) marks.seen[i] = marks.masked[i] = 0;
  __syncthreads();
  if (penalises(p)) {
    for (int i = thread; i < count; i += threads) mark(marks.seen, first_id, history[i]);
  }
  for (int w = p.stop_words + thread; w < p.stop_words + p.bad_words; w += threads) {
    const int begin = words[2 * w], last = words[2 * w + 1] - 1;
    if (last - begin > count) continue;
    bool match = true;
    for (int i = begin; i < last && match; ++i) match = words[i] == history[count - last + i];
    if (match) mark(marks.masked, first_id, words[last]);
  }
  if (holds_back(p, count - p.prompt_tokens)) {
    for (int i = thread; i < p.mask_ids; i += threads) {
      mark(marks.masked, first_id, p.end_ids[p.mask_begin + i]);
    }
  }
  __syncthreads();
}

// The steps of sample_token before the cuts; one rounding to fp32 each, as there.
__device__ __forceinline__ float adjusted(float logit, const SlotParams& p, bool seen,
                                          bool masked) {
  if (masked) return -INFINITY;
  if (divides(p)) logit = __double2float_rn(__ddiv_rn(logit, p.temperature));
  if (!seen) return logit;
  const double value = logit;
  const double scaled =
      value < 0.0 ? __dmul_rn(value, p.repetition_penalty) : __ddiv_rn(value, p.repetition_penalty);
  return __double2float_rn(__dsub_rn(scaled, p.presence_penalty));
}

// What one chunk of a row, or all of it, comes to.
struct alignas(16) RowPartial {
  double sum;       // of exp(logit - top) over the model's logits
  float top;        // the largest of those
  int32_t bad;      // the first that is not finite; INT_MAX: none
  float best;       // the largest adjusted logit
  int32_t best_id;  // the lowest id of those
  int32_t unused[2];
};
static_assert(sizeof(RowPartial) == kSamplePartialBytes, "sample_workspace_bytes");

__device__ __forceinline__ RowPartial nothing_yet() {
  return {0.0, -INFINITY, INT_MAX, -INFINITY, INT_MAX, {0, 0}};
}

__device__ __forceinline__ void take_better(RowPartial& a, float value, int32_t id) {
  if (value > a.best || (value == a.best && id < a.best_id)) {
    a.best = value;
    a.best_id = id;
  }
}

// The partials of the lanes together, in every lane. In the order of the lanes, whatever they hold.
__device__ inline RowPartial reduce_warp(RowPartial a) {
  const float own_top = a.top;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    a.top = fmaxf(a.top, __shfl_xor_sync(kFullWarp, a.top, step));
    a.bad = min(a.bad, __shfl_xor_sync(kFullWarp, a.bad, step));
    const float value = __shfl_xor_sync(kFullWarp, a.best, step);
    take_better(a, value, __shfl_xor_sync(kFullWarp, a.best_id, step));
  }
  a.sum = own_top == -INFINITY ? 0.0 : a.sum * expf(own_top - a.top);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    a.sum += __shfl_xor_sync(kFullWarp, a.sum, step);
  }
  return a;
}

// The partials of a row together, by one warp.
__device__ inline RowPartial reduce_row(const RowPartial* partials, int count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  RowPartial all = nothing_yet();
  for (int base = 0; base < count; base += kWarp) {
    RowPartial own = nothing_yet();
    if (base + lane < count) own = partials[base + lane];
    own = reduce_warp(own);
    const float top = fmaxf(all.top, own.top);
    all.sum = (base == 0 ? 0.0 : all.sum * expf(all.top - top)) + own.sum * expf(own.top - top);
    all.top = top;
    all.bad = min(all.bad, own.bad);
    take_better(all, own.best, own.best_id);
  }
  return all;
}

// The fault of a row, kSampleOk if it has none.
__device__ __forceinline__ SampleStatus fault_of(const RowPartial& row) {
  if (row.bad != INT_MAX) return kSampleNotFinite;
  if (row.best == -INFINITY) return kSampleNothingLeft;
  return row.best == INFINITY ? kSampleInfinite : kSampleOk;
}

__device__ __forceinline__ void store_sample(DeviceSample* out, int32_t slot, int32_t token,
                                             float logprob, SampleStatus status) {
  *reinterpret_cast<int4*>(out) =
      make_int4(slot, token, __float_as_int(logprob), static_cast<int>(status));
}

__device__ inline void store_fault(DeviceSample* out, const SlotsView& slots, int32_t slot,
                                   const RowPartial& row, const float* logits) {
  const SampleStatus status = fault_of(row);
  const bool bad = status == kSampleNotFinite;
  const int32_t token = bad ? row.bad : status == kSampleInfinite ? row.best_id : 0;
  store_sample(out, slot, token, bad ? logits[row.bad] : 0.0f, status);
  slots.finished[slot] = 1;
}

// Appends the token, and ends the slot by the rule of ft/decoding/stop.cc. By one warp.
__device__ inline void append_token(const SlotsView& slots, int32_t slot, int32_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const SlotParams& p = slots.params[slot];
  const int32_t* words = slots.words_of(slot);
  int32_t* history = slots.history_of(slot);
  const int32_t count = slots.tokens[slot], length = count + 1;
  bool stop = false;
  for (int i = lane; i < p.stop_ids; i += kWarp) stop |= p.end_ids[i] == token;
  for (int w = lane; w < p.stop_words; w += kWarp) {
    const int begin = words[2 * w], last = words[2 * w + 1] - 1;
    bool match = last - begin < length && words[last] == token;
    for (int i = begin; i < last && match; ++i) match = words[i] == history[count - last + i];
    stop |= match;
  }
  stop = __any_sync(kFullWarp, stop) || length - p.prompt_tokens >= p.max_tokens ||
         length >= p.max_len;
  if (lane != 0) return;
  if (count < slots.max_len) {
    history[count] = token;
    slots.tokens[slot] = length;
  }
  if (stop) slots.finished[slot] = 1;
}

}  // namespace flexq_ft::gpu
