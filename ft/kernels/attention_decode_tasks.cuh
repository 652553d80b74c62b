// The tasks of decode attention, and which of them a warp takes. A task is a part of a sequence for
// a block of query heads of one KV head. Their order: sequence by sequence, part by part, and the
// heads of a part one after another, so that neighbours have the same page table.
//
// Each warp takes those that begin within its equal share of all pages. So sequences of any lengths
// keep all warps busy, and a captured step can be replayed as contexts grow.
#pragma once

#include "ft/kernels/attention_decode.cuh"

namespace flexq_ft::gpu {

struct DecodeTask {
  int sequence;
  int part;
  int heads;       // which block of query heads
  int length;      // positions of the sequence
  int first, end;  // pages of the part
};

template <typename T>
struct DecodeTasks {
  const AttentionView<T>& view;
  int sequences;    // those of one token
  int head_blocks;  // of all KV heads
  DecodeTask task;
  int next_length;  // of the sequence behind
  int at, end;      // pages in front of the task; those up to the end of the share

  // All threads of the warp must call it. `share` of `shares`; all tasks have at most 2^31 - 1
  // pages.
  __device__ __forceinline__ DecodeTasks(const AttentionView<T>& view, int sequences,
                                         int head_blocks, int share, int shares)
      : view(view), sequences(sequences), head_blocks(head_blocks) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int pages = 0;
    for (int s = lane; s < sequences; s += 32) pages += pages_of(length_of(s));
    const int all = __reduce_add_sync(~0u, pages) * head_blocks;
    const int least = all / shares, rest = all % shares;
    at = share * least + min(share, rest);
    end = at + least + (share < rest ? 1 : 0);
    if (at < end) seek();
  }

  __device__ __forceinline__ bool more() const { return at < end; }

  __device__ __forceinline__ void advance() {
    at += task.end - task.first;
    if (++task.heads < head_blocks) return;
    task.heads = 0;
    if (task.end < pages_of(task.length)) {
      begin_part(task.part + 1);
    } else {
      begin_sequence(task.sequence + 1, next_length);
    }
  }

 private:
  static __device__ __forceinline__ int pages_of(int length) {
    return (length + kPageTokens - 1) / kPageTokens;
  }
  __device__ __forceinline__ int length_of(int sequence) const {
    return view.context[sequence] + 1;
  }

  __device__ __forceinline__ void begin_part(int part) {
    const int chunk = decode_chunk(task.length) / kPageTokens;
    task.part = part;
    task.first = part * chunk;
    task.end = min(task.first + chunk, pages_of(task.length));
  }

  __device__ __forceinline__ void begin_sequence(int sequence, int length) {
    task.sequence = sequence;
    task.length = length;
    next_length = length_of(min(sequence + 1, sequences - 1));
    begin_part(0);
  }

  // To the first task that begins at page `at` of all or behind it.
  __device__ __forceinline__ void seek() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int left = at;  // pages between the sequence's first and `at`
    for (int base = 0;; base += 32) {
      const int length = length_of(min(base + lane, sequences - 1));
      int sum = base + lane < sequences ? pages_of(length) : 0;  // of the lanes up to this one
      const int mine = sum;
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        const int other = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += other;
      }
      const uint32_t behind = __ballot_sync(~0u, left < sum * head_blocks);
      if (behind == 0) {
        left -= __shfl_sync(~0u, sum, 31) * head_blocks;
        continue;
      }
      const int owner = __ffs(static_cast<int>(behind)) - 1;
      left -= __shfl_sync(~0u, sum - mine, owner) * head_blocks;
      begin_sequence(base + owner, __shfl_sync(~0u, length, owner));
      break;
    }
    const int of_part = task.end * head_blocks;  // of a whole one
    if (left >= of_part) begin_part(left / of_part);
    left -= task.part * of_part;
    const int pages = task.end - task.first;
    task.heads = (left + pages - 1) / pages;
    at += task.heads * pages - left;
    if (task.heads < head_blocks) return;
    task.heads = head_blocks - 1;
    at -= pages;
    advance();
  }
};

// Copies the pages of a warp's tasks to its ring, one after another.
template <typename T, int kDim>
struct DecodeCopy {
  DecodeTasks<T> tasks;
  DecodeRing<kDim> ring;
  int index;  // of the page, in its sequence
  int id;     // of page `known` + the lane, as the table has it
  int known;

  __device__ __forceinline__ DecodeCopy(const DecodeTasks<T>& tasks, const DecodeRing<kDim>& ring)
      : tasks(tasks), ring(ring) {
    if (!tasks.more()) return;
    index = tasks.task.first;
    look_up();
  }

  // Begins to copy K, or V and goes on to the next page; then ends a group of copies.
  // The warp must have read what was in the slot.
  template <bool kValues>
  __device__ __forceinline__ void next() {
    if (tasks.more()) {
      const AttentionView<T>& view = tasks.view;
      const int kv_blocks = tasks.head_blocks / view.kv_heads;
      const int page = __shfl_sync(~0u, id, index - known);
      const int64_t from = view.page_at(page, tasks.task.heads / kv_blocks);
      const int count = tasks.task.length - index * kPageTokens;
      if constexpr (kValues) {
        ring.copy(view.v + from, count, view.head_dim);
        advance();
      } else {
        ring.copy(view.k + from, count, view.head_dim);
      }
    }
    commit_copies();
    ring.advance();
  }

 private:
  // A page's id is asked for when the one in front of it is copied.
  __device__ __forceinline__ void advance() {
    if (++index == tasks.task.end) {
      const int sequence = tasks.task.sequence;
      tasks.advance();
      if (!tasks.more()) return;
      index = tasks.task.first;
      if (tasks.task.sequence != sequence) return look_up();
    }
    if (index < known || index >= known + 32) look_up();
  }

  __device__ __forceinline__ void look_up() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t row = static_cast<int64_t>(tasks.task.sequence) * tasks.view.max_pages;
    known = index;
    id = tasks.view.pages[row + min(index + lane, tasks.view.max_pages - 1)];
  }
};

}  // namespace flexq_ft::gpu
