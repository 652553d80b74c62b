#include <algorithm>
#include <vector>

#include "ft/core/error.h"
#include "ft/step/args.h"
#include "ft/step/shared_map.h"
#include "ft/step/work_plan.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;
using namespace flexq_ft::step;

namespace {

// LLaMA-7B in six bits, so many layers.
std::vector<PlannedOp> llama_7b(int layers) {
  std::vector<PlannedOp> ops;
  for (int l = 0; l < layers; ++l) {
    ops.push_back({768, 32 * 1568});
    ops.push_back({});
    ops.push_back({256, 32 * 1568});
    ops.push_back({1376, 32 * 1568});
    ops.push_back({256, 86 * 1568});
  }
  ops.push_back({2000, 16 * 8192});
  return ops;
}

}  // namespace

TEST(every_unit_has_one_block) {
  for (const int blocks : {1, 7, 132}) {
    const std::vector<PlannedOp> ops = llama_7b(3);
    const std::vector<uint32_t> plan = plan_work(ops, blocks);
    EXPECT_EQ(plan.size(), ops.size() * static_cast<size_t>(blocks));
    auto word = plan.begin();
    for (size_t op = 0; op < ops.size(); ++op) {
      int next = 0;
      int participants = 0;
      for (int b = 0; b < blocks; ++b) {
        EXPECT_EQ(first_unit(*word), next);
        next += unit_count(*word);
        participants += has_work(*word++) ? 1 : 0;
      }
      EXPECT_EQ(next, static_cast<int>(ops[op].units));
      EXPECT_EQ(participants, static_cast<int>(std::min<int64_t>(blocks, ops[op].units)));
    }
  }
}

TEST(bytes_of_a_step_are_even) {
  const std::vector<PlannedOp> ops = llama_7b(32);
  const std::vector<uint32_t> plan = plan_work(ops, 132);
  std::vector<int64_t> load(132, 0);
  for (size_t i = 0; i < plan.size(); ++i) {
    load[i % 132] += unit_count(plan[i]) * ops[i / 132].unit_bytes;
  }
  const auto [least, most] = std::minmax_element(load.begin(), load.end());
  EXPECT(static_cast<double>(*least) > 0.99 * static_cast<double>(*most));
}

TEST(more_units_than_a_word_holds_are_refused) {
  EXPECT_THROW(plan_work({{70000, 1}}, 132), Error, "70000");
}

TEST(parts_of_shared_memory_do_not_meet) {
  for (const int tokens : {1, 3, 8}) {
    for (const bool codes : {false, true}) {
      SharedSizes sizes;
      sizes.tokens = tokens;
      sizes.hidden = 1000;
      sizes.widest_k = 2752;
      sizes.operand_bytes = codes ? 1 : 2;
      sizes.raw_k = codes ? sizes.hidden : 0;
      sizes.ops = 161;
      sizes.unit.bytes = 20000;
      sizes.attention_units = 3;
      sizes.block_bytes = 232448;
      const SharedMap map = make_shared_map(sizes);
      EXPECT(map.stages >= 6);
      EXPECT_EQ(map.stages % kTeams, 0);
      EXPECT_EQ(map.barrier_bytes, map.stages * 16);
      const int operand = std::max(tokens * map.token_pitch, sizes.unit.bytes);
      EXPECT(map.units_together >= 1 && map.units_together <= sizes.attention_units);
      EXPECT(map.units_together * map.unit.bytes <= operand);
      EXPECT(map.bytes <= sizes.block_bytes);
      struct Part {
        int begin, bytes;
      };
      std::vector<Part> parts = {{0, map.stages * kStageBytes},
                                 {map.tokens, operand},
                                 {map.scales, 22 * map.scale_tokens * 4},
                                 {map.sums, 2 * tokens * map.group_limit * 4},
                                 {map.maxima, kMaxTokens * 4},
                                 {map.partial, 2 * kWarps * tokens * kStageRows * 4},
                                 {map.ops, 2 * static_cast<int>(sizeof(Op))},
                                 {map.plan, sizes.ops * 4},
                                 {map.epoch, 4},
                                 {map.units, 16 + sizes.attention_units * 32},
                                 {map.handover, 4 * 8},
                                 {map.pair, 2 * 8},
                                 {map.barriers, map.barrier_bytes}};
      std::sort(parts.begin(), parts.end(),
                [](const Part& a, const Part& b) { return a.begin < b.begin; });
      for (size_t i = 0; i < parts.size(); ++i) {
        EXPECT_EQ(parts[i].begin % 16, 0);
        const int end = parts[i].begin + parts[i].bytes;
        EXPECT(end <= (i + 1 < parts.size() ? parts[i + 1].begin : map.bytes));
      }
      EXPECT(map.token_pitch >= 22 * 128 * sizes.operand_bytes);
      EXPECT(map.token_pitch >= 1024 * (codes ? 3 : 2));
    }
  }
}

TEST(a_batch_that_leaves_no_ring_has_no_map) {
  SharedSizes sizes;
  sizes.tokens = 8;
  sizes.hidden = 4096;
  sizes.widest_k = 11008;
  sizes.ops = 161;
  sizes.block_bytes = 232448;
  EXPECT_EQ(make_shared_map(sizes).stages, 0);
  sizes.tokens = 4;
  EXPECT(make_shared_map(sizes).stages > 0);
}

// The lengths that StepPath's choice between one kernel and op by op goes by, of models of which
// both were measured.
TEST(what_sequences_need_shortens_the_ring) {
  struct Case {
    int tokens, hidden, widest_k, operand_bytes, stages;
  };
  // LLaMA-7B, 13B and 30B and OPT-30B: six bits, then 16.
  for (const Case& c :
       {Case{1, 4096, 11008, 1, 16}, Case{4, 4096, 11008, 1, 12}, Case{8, 4096, 11008, 1, 8},
        Case{3, 5120, 13824, 1, 12}, Case{4, 5120, 13824, 1, 10}, Case{8, 5120, 13824, 1, 6},
        Case{2, 6656, 17920, 1, 12}, Case{4, 6656, 17920, 1, 10}, Case{2, 7168, 28672, 1, 12},
        Case{3, 7168, 28672, 1, 10}, Case{2, 4096, 11008, 2, 12}, Case{2, 6656, 17920, 2, 10},
        Case{2, 7168, 28672, 2, 8}}) {
    SharedSizes sizes;
    sizes.tokens = c.tokens;
    sizes.hidden = c.hidden;
    sizes.widest_k = c.widest_k;
    sizes.operand_bytes = c.operand_bytes;
    sizes.raw_k = c.operand_bytes == 1 ? c.hidden : 0;
    sizes.spread = c.operand_bytes == 1 ? 16 : 64;
    sizes.ops = 161;
    sizes.unit.bytes = 12000;
    sizes.block_bytes = 232448;  // of an H100 or H200
    EXPECT_EQ(make_shared_map(sizes).stages, c.stages);
  }
}

TEST(parts_of_a_context_are_whole_stages) {
  for (const int head_dim : {64, 128}) {
    int before = 0;
    for (int tokens = 1; tokens <= 9000; ++tokens) {
      const int length = part_length(tokens, 4, head_dim);
      EXPECT_EQ(length % stage_tokens(head_dim), 0);
      EXPECT(4 * length >= tokens && length >= before);  // room for the longest is room for all
      before = length;
    }
  }
  EXPECT_EQ(part_length(257, 4, 128), 96);
  EXPECT_EQ(part_length(1025, 4, 128), 288);
}

// Of every number of query heads that share, of parts of one token up to many.
TEST(parts_of_an_attention_unit_do_not_meet) {
  for (const int head_dim : {64, 128}) {
    for (int sharing = 1; sharing <= kMaxSharing; ++sharing) {
      int before = 0;
      for (const int length : {1, 15, 16, 17, 31, 96, 97, 192, 193, 383, 384, 480, 2049, 8192}) {
        const UnitMap map = make_unit_map(head_dim, sharing, length);
        const int page_end = (length + 15) / 16 * 16;  // exponentials go on to there
        struct Part {
          int begin, bytes, multiple;
        };
        const Part parts[] = {{0, sharing * map.row, 16},
                              {map.newest, 2 * map.row, 16},
                              {map.tops, sharing * kWarps * 4, 16},
                              {map.most, sharing * 4, 4},
                              {map.sums, sharing * weighings(length) * 4, 4},
                              {map.scores, sharing * map.pitch * 4, 8},
                              {map.values, value_sums(head_dim) * sharing * head_dim * 4, 8},
                              {map.bytes, 0, 16}};  // the next unit
        int end = 0;
        for (const Part& part : parts) {
          EXPECT(part.begin >= end);
          EXPECT_EQ(part.begin % part.multiple, 0);
          end = part.begin + part.bytes;
        }
        EXPECT(map.row >= head_dim * 2 && map.pitch >= page_end);
        EXPECT_EQ(map.row % 16, 0);
        EXPECT_EQ(map.row % 128, 16);
        EXPECT_EQ(map.pitch * 4 % 128, 32);
        EXPECT(kWeighedTokens * weighings(length) >= length);
        EXPECT(sharing <= 1 << map.row_bits && (sharing == 1 || sharing > 1 << (map.row_bits - 1)));
        EXPECT(map.bytes >= before);  // room for the longest is room for all
        before = map.bytes;
      }
    }
  }
}

// Eight tokens of LLaMA-3-8B: units of a block lie in the operand's place, and end within it.
TEST(attention_units_lie_side_by_side) {
  SharedSizes sizes;
  sizes.tokens = 8;
  sizes.hidden = 4096;
  sizes.widest_k = 14336;
  sizes.operand_bytes = 1;
  sizes.raw_k = 4096;
  sizes.ops = 161;
  sizes.block_bytes = 232448;
  sizes.attention_units = 8;
  int before = sizes.attention_units;
  for (const int tokens : {1, 1000, 8000, 100000}) {
    sizes.unit = make_unit_map(128, 4, part_length(tokens, 16, 128));
    const SharedMap map = make_shared_map(sizes);
    EXPECT(map.stages >= kLeastStages);
    EXPECT_EQ(map.unit.bytes, sizes.unit.bytes);
    EXPECT(1 <= map.units_together && map.units_together <= before);
    EXPECT(map.tokens + map.units_together * map.unit.bytes <= map.scales);
    before = map.units_together;
  }
  EXPECT_EQ(before, 1);
}

TEST(numbers_in_flight_are_odd_and_in_a_short_ring_even) {
  const auto same = [](InFlight a, InFlight b) { return a.most == b.most && a.filled == b.filled; };
  EXPECT(same(in_flight_of({5, 3}, 16), {5, 3}));
  EXPECT(same(in_flight_of({6, 4}, 10), {5, 3}));
  EXPECT(same(in_flight_of({5, 3}, 8), {6, 4}));  // a slot's successor would not be far enough
  EXPECT(same(in_flight_of({9, 3}, 6), {6, 4}));
  EXPECT(same(in_flight_of({1, 1}, 4), {1, 1}));
  EXPECT(same(in_flight_of({5, 5}, 2), {2, 2}));
  for (int stages = 2; stages <= 20; stages += 2) {
    for (int most = 1; most <= 12; ++most) {
      for (int filled = 1; filled <= most; ++filled) {
        const InFlight got = in_flight_of({most, filled}, stages);
        EXPECT_EQ(got.most % 2, got.filled % 2);
        EXPECT(1 <= got.filled && got.filled <= got.most && got.most <= stages);
        EXPECT(got.most % 2 == 0 || 2 * got.most - 2 < stages);
      }
    }
  }
}
