#include "ft/step/shared_map.h"

#include <algorithm>

#include "flexq_kernels/pack.h"
#include "ft/step/args.h"

namespace flexq_ft::step {

namespace {

constexpr int round_up(int value, int to) { return (value + to - 1) / to * to; }

}  // namespace

SharedMap make_shared_map(const SharedSizes& sizes) {
  SharedMap map;
  int at = 0;
  const auto take = [&](int bytes) {
    const int begin = at;
    at = round_up(at + bytes, 16);
    return begin;
  };
  // Offsets behind the ring, whose size is what is left.
  const int k = std::max(sizes.widest_k, sizes.hidden);
  const int groups = static_cast<int>(flexq_kernels::group_count(k));
  const int padded = groups * flexq_kernels::kGroupSize;
  const int head_row = round_up(sizes.hidden, flexq_kernels::kGroupSize) * 2;  // never quantised
  const int raw_codes = round_up(sizes.raw_k, flexq_kernels::kGroupSize);
  map.token_pitch =
      std::max({padded * sizes.operand_bytes, head_row, 3 * raw_codes}) + sizes.spread;
  const int operand = sizes.tokens * map.token_pitch, unit = sizes.unit.bytes;
  map.unit = sizes.unit;
  map.units_together = std::clamp(operand / std::max(unit, 1), 1, sizes.attention_units);
  map.tokens = take(std::max(operand, unit));
  map.raw = map.tokens + raw_codes;
  map.scale_tokens = round_up(sizes.tokens, 2);
  map.scales = take(std::max(groups, 2) * map.scale_tokens * 4);
  map.group_limit = static_cast<int>(flexq_kernels::group_count(sizes.hidden));
  map.sums = take(2 * sizes.tokens * map.group_limit * 4);
  map.maxima = take(kMaxTokens * 4);
  map.partial = take(2 * kWarps * sizes.tokens * kStageRows * 4);
  map.ops = take(2 * static_cast<int>(sizeof(Op)));
  map.plan = take(sizes.ops * 4);
  map.epoch = take(4);
  map.units = take(16 + sizes.attention_units * static_cast<int>(sizeof(AttentionUnit)));
  map.handover = take(4 * 8);
  map.pair = take(2 * 8);
  const int others = at;
  const int room = (sizes.block_bytes - others - 16) / (kStageBytes + kSlotBarriers);
  const int stages = room / kTeams * kTeams;  // a slot is always one team's
  if (stages < kLeastStages) return map;
  map.stages = stages;
  const int ring = stages * kStageBytes;
  for (int* offset : {&map.tokens, &map.raw, &map.scales, &map.sums, &map.maxima, &map.partial,
                      &map.ops, &map.plan, &map.epoch, &map.units, &map.handover, &map.pair}) {
    *offset += ring;
  }
  map.block_bytes = sizes.block_bytes;
  map.barriers = ring + others;
  map.barrier_bytes = stages * kSlotBarriers;
  map.bytes = map.barriers + map.barrier_bytes;
  return map;
}

}  // namespace flexq_ft::step
