// How decode attention cuts its work. The positions of a sequence are cut into parts; a part for a
// block of query heads of one KV head is a task. Tasks have an order: sequence by sequence, part by
// part, and the blocks of heads of a part one after another, so that neighbours have the same pages
// in the table. It is index arithmetic alone, for the host too, where it is tested.
#pragma once

#include <cstdint>

#include "ft/core/host_device.h"
#include "ft/kernels/paged_kv.h"

namespace flexq_ft::gpu {

constexpr int kMaxDecodeParts = 32;
constexpr int kDecodeChunk = 32;  // least positions of a part

FLEXQ_FT_HOST_DEVICE int pages_of(int length) { return (length + kPageTokens - 1) / kPageTokens; }

// Positions of a part, a multiple of 16, of a sequence with so many: of its length alone, so that a
// row's bits do not depend on its batch. 16 parts up to 4096 positions: enough blocks for one
// sequence of a model with many KV heads, and little to combine; then as many as it takes to keep
// parts of 256, 32 at most.
FLEXQ_FT_HOST_DEVICE int decode_chunk(int length) {
  const int sixteenth = (length + 15) / 16;
  const int least = (length + kMaxDecodeParts - 1) / kMaxDecodeParts;
  int chunk = sixteenth < 256 ? sixteenth : 256;
  chunk = chunk > least ? chunk : least;
  chunk = chunk > kDecodeChunk ? chunk : kDecodeChunk;
  return (chunk + kPageTokens - 1) / kPageTokens * kPageTokens;
}
FLEXQ_FT_HOST_DEVICE int decode_parts(int length) {
  const int chunk = decode_chunk(length);
  return (length + chunk - 1) / chunk;
}
// Most parts of a sequence of up to so many positions.
constexpr int most_decode_parts(int64_t positions) {
  if (positions > 4096) return kMaxDecodeParts;
  const int64_t parts = (positions + kDecodeChunk - 1) / kDecodeChunk;
  return static_cast<int>(parts < 1 ? 1 : parts < 16 ? parts : 16);
}

struct DecodeTask {
  int sequence;
  int length;  // positions of the sequence
  int part;
  int first, end;  // pages of the part
  int head_block;  // of those of all KV heads

  FLEXQ_FT_HOST_DEVICE int pages() const { return end - first; }

  // The first task of a sequence.
  FLEXQ_FT_HOST_DEVICE void begin(int its_sequence, int its_length) {
    sequence = its_sequence;
    length = its_length;
    head_block = 0;
    begin_part(0, 0);
  }

  // From the first task of a sequence to the first that begins `from` pages behind it, or later;
  // returns how many pages later. carry() must follow. The sequence has more than `from` pages, of
  // all blocks of heads.
  FLEXQ_FT_HOST_DEVICE int skip(int from, int head_blocks) {
    const int chunk = end, of_part = chunk * head_blocks;  // pages of a part, of its tasks
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
    const int behind = page + decode_chunk(length) / kPageTokens, all = pages_of(length);
    part = index;
    first = page;
    end = behind < all ? behind : all;
  }
};

}  // namespace flexq_ft::gpu
