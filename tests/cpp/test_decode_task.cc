#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "ft/kernels/decode_task.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;
using gpu::DecodeTask;

namespace {

struct Placed {
  DecodeTask task;
  int64_t at;  // pages of all tasks in front of it
};

bool same(const DecodeTask& a, const DecodeTask& b) {
  const auto words = [](const DecodeTask& t) {
    return std::tuple(t.sequence, t.length, t.part, t.first, t.end, t.head_block, t.chunk);
  };
  return words(a) == words(b);
}

// The tasks of a sequence as three loops, by position.
std::vector<Placed> plain_tasks(int sequence, int length, int head_blocks, int64_t at) {
  std::vector<Placed> out;
  const int chunk = gpu::decode_chunk(length, gpu::decode_part_limit(head_blocks));
  for (int part = 0; part * chunk < length; ++part) {
    const int last = std::min((part + 1) * chunk, length) - 1;
    for (int block = 0; block < head_blocks; ++block) {
      const int first = part * chunk / kPageTokens, end = last / kPageTokens + 1;
      out.push_back({{sequence, length, part, first, end, block, chunk / kPageTokens}, at});
      at += end - first;
    }
  }
  return out;
}

const std::vector<int> kLengths = {1,    15,   16,   17,   31,   32,    33,    512,   513,
                                   1000, 4096, 4097, 8191, 8193, 16384, 16385, 20000, 131071};

}  // namespace

TEST(parts_cover_a_sequence) {
  for (const int limit : {32, 64, 128}) {
    int most = 0;
    for (int length = 1; length <= 140000; length += length < 20000 ? 1 : 97) {
      const int chunk = gpu::decode_chunk(length, limit), parts = gpu::decode_parts(length, limit);
      EXPECT(chunk % kPageTokens == 0 && chunk >= gpu::kDecodeChunk);
      EXPECT((parts - 1) * chunk < length && length <= parts * chunk);
      EXPECT(parts <= gpu::most_decode_parts(length, limit));
      EXPECT(gpu::most_decode_parts(length, limit) <= limit);
      EXPECT(most <= gpu::most_decode_parts(length, limit));
      most = gpu::most_decode_parts(length, limit);
    }
    EXPECT_EQ(most, limit);
  }
}

TEST(few_blocks_of_heads_have_more_parts) {
  EXPECT_EQ(gpu::head_blocks_of(32, 32), 32);
  EXPECT_EQ(gpu::head_blocks_of(32, 8), 8);
  EXPECT_EQ(gpu::head_blocks_of(9, 1), 2);
  int last = gpu::kMaxDecodeParts;
  for (int blocks = 1; blocks <= 200; ++blocks) {
    const int limit = gpu::decode_part_limit(blocks);
    EXPECT(limit <= last && limit >= 32 && (limit & (limit - 1)) == 0);
    last = limit;
  }
  // One sequence of 8,192 tokens: two thirds of the 1,056 warps of 132 multiprocessors at least.
  for (const int blocks : {8, 16, 32, 40}) {
    EXPECT(blocks * gpu::decode_parts(8192, gpu::decode_part_limit(blocks)) >= 704);
  }
}

TEST(tasks_follow_each_other) {
  for (const int head_blocks : {1, 3, 8, 9, 20}) {
    for (const int length : kLengths) {
      DecodeTask task{};
      task.begin(5, length, gpu::decode_part_limit(head_blocks));
      bool more = true;
      for (const Placed& want : plain_tasks(5, length, head_blocks, 0)) {
        EXPECT(more && same(task, want.task));
        ++task.head_block;
        more = task.carry(head_blocks);
      }
      EXPECT(!more);
    }
  }
}

TEST(skipping_pages_finds_the_next_task) {
  for (const int head_blocks : {1, 3, 8, 9, 20}) {
    for (const int length : kLengths) {
      const std::vector<Placed> plain = plain_tasks(2, length, head_blocks, 0);
      const int all = gpu::pages_of(length) * head_blocks;
      size_t next = 0;
      for (int from = 0; from < all; ++from) {
        if (next < plain.size() && plain[next].at < from) ++next;
        DecodeTask task{};
        task.begin(2, length, gpu::decode_part_limit(head_blocks));
        const int later = task.skip(from, head_blocks);
        const bool there = task.carry(head_blocks);
        EXPECT_EQ(there, next < plain.size());
        EXPECT_EQ(static_cast<int64_t>(from) + later, there ? plain[next].at : all);
        EXPECT(!there || same(task, plain[next].task));
      }
    }
  }
}

// As warps do: the shares of all pages, each from the first task that begins in it.
TEST(shares_take_every_task_once) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const int head_blocks = 1 + static_cast<int>(random() % 20);
    std::vector<int> lengths(1 + random() % 40);
    for (int& length : lengths) length = 1 + static_cast<int>(random() % (round % 2 ? 60 : 6000));
    std::vector<Placed> plain;
    std::vector<int64_t> begins = {0};
    for (size_t s = 0; s < lengths.size(); ++s) {
      const auto its = plain_tasks(static_cast<int>(s), lengths[s], head_blocks, begins[s]);
      plain.insert(plain.end(), its.begin(), its.end());
      begins.push_back(its.back().at + its.back().task.pages());
    }
    const int64_t all = begins.back(), shares = 1 + static_cast<int64_t>(random() % 1100);
    size_t next = 0;
    for (int64_t share = 0; share < shares; ++share) {
      const int64_t from = all * share / shares, to = all * (share + 1) / shares;
      if (from == to) continue;
      size_t s = 0;
      while (begins[s + 1] <= from) ++s;
      DecodeTask task{};
      task.begin(static_cast<int>(s), lengths[s], gpu::decode_part_limit(head_blocks));
      int64_t at = from + task.skip(static_cast<int>(from - begins[s]), head_blocks);
      while (true) {
        if (!task.carry(head_blocks) && ++s < lengths.size()) {
          task.begin(static_cast<int>(s), lengths[s], gpu::decode_part_limit(head_blocks));
        }
        if (at >= to) break;
        EXPECT(next < plain.size() && at == plain[next].at && same(task, plain[next].task));
        ++next;
        at += task.pages();
        ++task.head_block;
      }
    }
    EXPECT_EQ(next, plain.size());
  }
}
