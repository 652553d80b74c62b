// How a block of the step kernel divides its shared memory: offsets in bytes, made on the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace flexq_ft::step {

// Warps that compute, in two teams that take the stages of a product in turn: four warps of a
// scheduler hide what one waits for. One more warp finishes sums, and some stream.
constexpr int kTeams = 2;
constexpr int kTeamWarps = 8;
constexpr int kWarps = kTeams * kTeamWarps;
constexpr int kStreamWarps = 2;
constexpr int kComputeThreads = kWarps * 32;

// A stage of the ring holds 768 bytes of each of 16 rows; or eight six-bit tiles and behind them
// their scales; or 12 KB of K or V; or norm weights. It begins at a multiple of 1,024, as the
// swizzle of tensor copies asks for.
constexpr int kStageRows = 16;
constexpr int kRowBytes = 768;
constexpr int kBoxBytes = 128;  // of each row, one box of a tensor copy: [rows][128], swizzled
constexpr int kStageBytes = 13 * 1024;
constexpr int kStageTiles = kTeamWarps;
constexpr int kNormValues = 6144;   // of 16 bits, in one stage
constexpr int kCacheValues = 6144;  // of K or of V, in one stage
constexpr int kSlotBarriers = 16;   // bytes, of a stage's two mbarriers
// Of a ring. Fewer could not hold a norm's weights and biases while products run ahead.
constexpr int kLeastStages = 6;

struct SharedMap {
  int stages = 0;  // of the ring, which comes first
  int tokens = 0;  // the operand of the products, [tokens] rows of token_pitch bytes
  int token_pitch = 0;
  int raw = 0;     // 16-bit values that are still to be quantised: behind the codes of a row
  int scales = 0;  // fp32, of the operand: [groups, or 2 where it has one][scale_tokens]
  int scale_tokens = 0;
  int sums = 0;  // fp32 [2][tokens][groups]: of a norm
  int group_limit = 0;
  int maxima = 0;          // int32 [8]
  int partial = 0;         // [2 units][warps][tokens][16] fp32 or int32
  int ops = 0;             // two Ops: this one and the next
  int plan = 0;            // uint32 [ops]
  int epoch = 0;           // uint32, of the step's input (block.cuh)
  int units = 0;           // of the attention: their number, and behind 16 bytes the units
  int units_together = 1;  // that the operand's place has room for,
  int unit_floats = 0;     // of so many floats each
  int barriers = 0;        // of the ring, kSlotBarriers for each stage
  int barrier_bytes = 0;   // of all stages
  int handover = 0;        // four barriers (partial_sums.cuh)
  int pair = 0;            // two (pair.cuh)
  int bytes = 0;
  int block_bytes = 0;  // what a block may have
};

// The widest norm whose `arrays` (weights, and of a layer norm biases) are in the shortest ring
// together, as the product behind it asks for.
constexpr int widest_norm(int arrays) { return kLeastStages / arrays * kNormValues; }

// Tokens of K or of V in a stage.
constexpr int stage_tokens(int head_dim) { return kCacheValues / head_dim; }

// How many tokens a part of a context of so many has, if there are as many parts as may be: whole
// stages, and not too few.
constexpr int part_length(int tokens, int max_parts, int head_dim) {
  constexpr int kLeast = 96;
  const int even = (tokens + max_parts - 1) / max_parts, stage = stage_tokens(head_dim);
  const int length = (even + stage - 1) / stage * stage;
  return length < kLeast ? kLeast : length;
}

// The largest odd number up to this one, at least 1.
constexpr int odd(int number) { return number < 3 ? 1 : number - 1 + number % 2; }

// The least even number from this one on, at least 2.
constexpr int even(int number) { return number < 2 ? 2 : number + number % 2; }

// Stages of a ring that may be on their way, and once it is well filled.
struct InFlight {
  int most, filled;
};

// As wanted, but both odd, or in a ring too short for that both even (step/ring.cuh).
constexpr InFlight in_flight_of(InFlight wanted, int stages) {
  const bool is_long = 2 * odd(wanted.most) - 2 < stages;
  const int most = is_long ? odd(wanted.most) : std::min(even(wanted.most), stages);
  return {most, std::min(is_long ? odd(wanted.filled) : even(wanted.filled), most)};
}

// Sizes that decide the map.
struct SharedSizes {
  int tokens = 1;
  int hidden = 0;
  int widest_k = 0;       // of the products of the layers
  int operand_bytes = 2;  // of one value of the operand: 1 where it is quantised
  int raw_k = 0;          // values of a row that are kept until they are quantised; 0: none
  int spread = 16;        // bytes between two tokens' rows, modulo 128, against bank conflicts
  int ops = 0;
  int attention_floats = 0;  // that the attention keeps for a unit, where the operand is
  int attention_units = 1;   // of a block, at most
  int block_bytes = 0;       // shared memory of one block
};

// Floats that the attention keeps for a unit, whose part has at most `length` tokens:
//   q [sharing][dim], newest K and V [2][dim], values [warps][dim], sums and maxima [warps],
//   scores [sharing][length]
constexpr int unit_floats(int head_dim, int sharing, int length) {
  return (sharing + 2 + kWarps) * head_dim + 2 * kWarps + (sharing * length + 3) / 4 * 4;
}

// stages is 0 if the sizes leave too little for a ring.
SharedMap make_shared_map(const SharedSizes& sizes);

}  // namespace flexq_ft::step
