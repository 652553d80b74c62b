// Which tasks of decode attention a warp takes, and the copies of their pages.
//
// Each warp takes the tasks that begin within its equal share of all pages. So sequences of any
// lengths keep all warps busy, and a captured step can be replayed as contexts grow.
#pragma once

#include "ft/kernels/attention_decode.cuh"

namespace flexq_ft::gpu {

template <typename T>
struct DecodeTasks {
  const AttentionView<T>& view;
  int sequences;    // those of one token
  int head_blocks;  // of all KV heads
  int part_limit;   // decode_part_limit(), or less
  DecodeTask task;
  int next_length;  // of the sequence behind
  int left;         // pages from the task to the end of the share

  // All threads of the warp must call it. `share` of `shares`; all tasks have at most 2^31 - 1
  // pages.
  __device__ __forceinline__ DecodeTasks(const AttentionView<T>& view, int sequences,
                                         int head_blocks, int part_limit, int share, int shares)
      : view(view), sequences(sequences), head_blocks(head_blocks), part_limit(part_limit) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int pages = 0;
    for (int s = lane; s < sequences; s += 32) pages += pages_of(length_of(s));
    const int all = __reduce_add_sync(~0u, pages) * head_blocks;
    const int least = all / shares, rest = all % shares;
    left = least + (share < rest ? 1 : 0);
    if (left > 0) seek(share * least + min(share, rest));
  }

  __device__ __forceinline__ bool more() const { return left > 0; }

  __device__ __forceinline__ void advance() {
    left -= task.pages();
    ++task.head_block;
    carry();
  }

  // Of the query heads of a task: their KV head, how many they are, and the first one's row of q.
  __device__ __forceinline__ int kv_head(const DecodeTask& of) const {
    return of.head_block / blocks();
  }
  __device__ __forceinline__ int heads(const DecodeTask& of) const {
    return min(kDecodeHeads, view.group() - of.head_block % blocks() * kDecodeHeads);
  }
  __device__ __forceinline__ int64_t row(const DecodeTask& of) const {
    const int in_group = of.head_block % blocks() * kDecodeHeads;
    return static_cast<int64_t>(of.sequence) * view.heads + kv_head(of) * view.group() + in_group;
  }

 private:
  __device__ __forceinline__ int blocks() const { return head_blocks / view.kv_heads; }
  __device__ __forceinline__ int length_of(int sequence) const {
    return view.context[sequence] + 1;
  }

  __device__ __forceinline__ void carry() {
    if (!task.carry(head_blocks)) begin_sequence(task.sequence + 1, next_length);
  }

  __device__ __forceinline__ void begin_sequence(int sequence, int length) {
    task.begin(sequence, length, part_limit);
    next_length = length_of(min(sequence + 1, sequences - 1));
  }

  // To the first task that begins at page `from` of all or behind it.
  __device__ __forceinline__ void seek(int from) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int base = 0;; base += 32) {
      const int length = length_of(min(base + lane, sequences - 1));
      const int mine = base + lane < sequences ? pages_of(length) : 0;
      int sum = mine;  // of the lanes up to this one
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        const int other = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += other;
      }
      const uint32_t behind = __ballot_sync(~0u, from < sum * head_blocks);
      if (behind == 0) {
        from -= __shfl_sync(~0u, sum, 31) * head_blocks;
        continue;
      }
      const int owner = __ffs(static_cast<int>(behind)) - 1;
      from -= __shfl_sync(~0u, sum - mine, owner) * head_blocks;
      begin_sequence(base + owner, __shfl_sync(~0u, length, owner));
      break;
    }
    left -= task.skip(from, head_blocks);
    carry();
  }
};

// Copies the pages of a warp's tasks, of which there is one at least, to its ring, one after
// another.
template <typename T, int kDim>
struct DecodeCopy {
  DecodeTasks<T> tasks;
  DecodeRing<kDim> ring;
  int index;  // of the page, in its sequence
  int id;     // of page index / 32 * 32 + the lane, as the table has it

  __device__ __forceinline__ DecodeCopy(const DecodeTasks<T>& tasks, const DecodeRing<kDim>& ring)
      : tasks(tasks), ring(ring), index(tasks.task.first) {
    look_up();
  }

  // Is the next page, if there is one, that of a sequence's newest token?
  __device__ __forceinline__ bool at_last_page() const {
    return tasks.more() && index + 1 == pages_of(tasks.task.length);
  }

  // Begins to copy K, or V and goes on to the next page; then ends a group of copies.
  // The warp must have read what was in the slot.
  template <bool kValues>
  __device__ __forceinline__ void next() {
    if (tasks.more()) {
      const AttentionView<T>& view = tasks.view;
      const int page = __shfl_sync(~0u, id, index % 32);
      const int64_t from = view.page_at(page, tasks.kv_head(tasks.task));
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
    const int known = index / 32, sequence = tasks.task.sequence;
    if (++index == tasks.task.end) {
      tasks.advance();
      if (!tasks.more()) return;
      index = tasks.task.first;
    }
    if (index / 32 != known || tasks.task.sequence != sequence) look_up();
  }

  __device__ __forceinline__ void look_up() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t row = static_cast<int64_t>(tasks.task.sequence) * tasks.view.max_pages;
    id = tasks.view.pages[row + min(index / 32 * 32 + lane, tasks.view.max_pages - 1)];
  }
};

}  // namespace flexq_ft::gpu
