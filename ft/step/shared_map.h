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

// What the attention keeps of a unit, where the products keep their operand: offsets in bytes. A
// unit is a part, of at most `length` tokens, of one KV head's context, with the query heads that
// share it.
struct UnitMap {
  int sharing = 1;
  int row_bits = 0;  // of a number below sharing: what deals rows to threads needs no division
  int row = 0;       // bytes of a row of q or of the newest token's K and V
  int newest = 0;    // K, V; in front of them q [sharing]
  int tops = 0;      // fp32 [sharing][kWarps]: the largest score of each warp's
  int most = 0;      // fp32 [sharing]: of all
  int sums = 0;      // fp32 [sharing][weighings(length)]: of exponentials
  int scores = 0;    // fp32 [sharing][pitch]; then exponentials, see attention.cuh
  int pitch = 0;
  int values = 0;  // fp32 [value_sums(head_dim)][sharing][head_dim]
  int bytes = 0;
};

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
  int units_together = 1;  // that the operand's place has room for, side by side
  UnitMap unit;
  int barriers = 0;       // of the ring, kSlotBarriers for each stage
  int barrier_bytes = 0;  // of all stages
  int handover = 0;       // four barriers (partial_sums.cuh)
  int pair = 0;           // two (pair.cuh)
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
  UnitMap unit;
  int attention_units = 1;  // of a block, at most
  int block_bytes = 0;      // shared memory of one block
};

// Dimensions of a head whose values a warp adds up, and how many sums there are of each.
constexpr int kValueDims = 16;
constexpr int value_sums(int head_dim) { return kWarps / (head_dim / kValueDims); }

// A warp takes the exponentials of so many tokens of one query head.
constexpr int kWeighedTokens = 192;
constexpr int weighings(int length) { return (length + kWeighedTokens - 1) / kWeighedTokens; }

// Rows of q lie 16 bytes, and of scores 32 bytes, apart modulo 128: lanes that read the same place
// of neighbouring rows read different banks.
constexpr UnitMap make_unit_map(int head_dim, int sharing, int length) {
  UnitMap map;
  map.sharing = sharing;
  while (sharing > 1 << map.row_bits) ++map.row_bits;
  map.row = head_dim * 2 + 16;
  map.newest = sharing * map.row;
  map.tops = map.newest + 2 * map.row;
  map.most = map.tops + sharing * kWarps * 4;
  map.sums = map.most + sharing * 4;
  map.scores = (map.sums + sharing * weighings(length) * 4 + 15) / 16 * 16;
  map.pitch = (length + 31) / 32 * 32 + 8;
  map.values = map.scores + sharing * map.pitch * 4;
  map.bytes = map.values + value_sums(head_dim) * sharing * head_dim * 4;
  return map;
}

// stages is 0 if the sizes leave too little for a ring.
SharedMap make_shared_map(const SharedSizes& sizes);

}  // namespace flexq_ft::step
