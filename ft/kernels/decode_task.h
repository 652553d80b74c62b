// How decode attention cuts its work. The positions of a sequence are cut into parts; a part for a
// block of query heads of one KV head is a task. Tasks have an order: sequence by sequence, part by
// part, and the blocks of heads of a part one after another, so that neighbours have the same pages
// in the table. It is index arithmetic alone, for the host too, where it is tested.
#pragma once

#include <cstdint>

#include "ft/core/host_device.h"
#include "ft/kernels/paged_kv.h"

namespace flexq_ft::gpu {

constexpr int kDecodeHeads = 8;   // query heads of a block, which share a KV head
constexpr int kDecodeChunk = 32;  // least positions of a part
constexpr int kMaxDecodeParts = 128;

// Blocks of query heads of so many heads.
FLEXQ_FT_HOST_DEVICE int head_blocks_of(int heads, int kv_heads) {
  return kv_heads * ((heads / kv_heads + kDecodeHeads - 1) / kDecodeHeads);
}

// Most parts of a sequence, by its tasks in each: about a thousand tasks keep the warps of a large
// GPU busy with one long sequence. A power of two.
FLEXQ_FT_HOST_DEVICE int decode_part_limit(int head_blocks) {
  return head_blocks > 16 ? 32 : head_blocks > 8 ? 64 : kMaxDecodeParts;
}

FLEXQ_FT_HOST_DEVICE int pages_of(int length) { return (length + kPageTokens - 1) / kPageTokens; }

// Positions of a part, a multiple of 16, of a sequence with so many: of its length and the limit
// alone, so that a row's bits do not depend on its batch. 16 parts, which are little to combine,
// while they are short; then as many as it takes to keep that length.
FLEXQ_FT_HOST_DEVICE int decode_chunk(int length, int limit) {
  const int longest = 8192 / limit;
  const int sixteenth = (length + 15) / 16, least = (length + limit - 1) / limit;
  int chunk = sixteenth < longest ? sixteenth : longest;
  chunk = chunk > least ? chunk : least;
  chunk = chunk > kDecodeChunk ? chunk : kDecodeChunk;
  return (chunk + kPageTokens - 1) / kPageTokens * kPageTokens;
}
FLEXQ_FT_HOST_DEVICE int decode_parts(int length, int limit) {
  const int chunk = decode_chunk(length, limit);
  return (length + chunk - 1) / chunk;
}
// Most parts of a sequence of up to so many positions.
constexpr int most_decode_parts(int64_t positions, int limit) {
  const auto parts_of = [=](int64_t chunk, int64_t most) {
    const int64_t parts = (positions + chunk - 1) / chunk;
    return parts < 1 ? 1 : parts < most ? parts : most;
  };
  const int64_t few = parts_of(kDecodeChunk, 16), many = parts_of(8192 / limit, limit);
  return static_cast<int>(few > many ? few : many);
}

struct DecodeTask {
  int sequence;
  int length;  // positions of the sequence
  int part;
  int first, end;  // pages of the part
  int head_block;  // of those of all KV heads
  int chunk;       // pages of a part, but for the last one

  FLEXQ_FT_HOST_DEVICE int pages() const { return end - first; }

  // The first task of a sequence, which has at most `limit` parts.
  FLEXQ_FT_HOST_DEVICE void begin(int its_sequence, int its_length, int limit) {
    sequence = its_sequence;
    length = its_length;
    head_block = 0;
    chunk = decode_chunk(length, limit) / kPageTokens;
    begin_part(0, 0);
  }

  // From the first task of a sequence to the first that begins `from` pages behind it, or later;
  // returns how many pages later. carry() must follow. The sequence has more than `from` pages, of
  // all blocks of heads.
  FLEXQ_FT_HOST_DEVICE int skip(int from, int head_blocks) {
    const int of_part = chunk * head_blocks;  // pages of a part's tasks
    const int index = from / of_part;
    begin_part(index, index * chunk);
    const int into = from - index * of_part;
    head_block = (into + pages() - 1) / pages();
    return head_block * pages() - into;
  }

  // Behind the last block of heads the next part begins. False behind the last part, too.
  FLEXQ_FT_HOST_DEVICE bool carry(int head_blocks) {
    if (head_block < head_blocks) return true;
    if (end == pages_of(length)) return false;
    head_block = 0;
    begin_part(part + 1, end);
    return true;
  }

 private:
  FLEXQ_FT_HOST_DEVICE void begin_part(int index, int page) {
    const int behind = page + chunk, all = pages_of(length);
    part = index;
    first = page;
    end = behind < all ? behind : all;
  }
};

}  // namespace flexq_ft::gpu
