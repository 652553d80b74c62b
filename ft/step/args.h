// What the step kernel is launched with: plain data, made once per model by step_kernel.cc.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ft/step/row_map.h"
#include "ft/step/shared_map.h"

namespace flexq_ft::step {

// The ops of a layer in order; behind the last layer comes kHead.
enum OpKind : int { kQkv, kAttention, kO, kUp, kDown, kHead };
constexpr int kLayerOps = 5;

constexpr int kMaxTokens = 8;   // of a step: the columns of one tensor-core tile
constexpr int kMaxSharing = 8;  // query heads of one KV head: columns of such a tile, too

// How the weights of the layers are stored and multiplied; the head is always of the compute type.
enum class Format : uint8_t { kFloat, kW8A16, kW8A8, kW6 };

// Four bytes of a result and the epoch that made them (packets.cuh).
using Packet = unsigned long long;

// One op of the step. A multiple of 16 bytes: it is copied as such.
struct alignas(16) Op {
  const void* codes = nullptr;
  const void* scales = nullptr;       // W6: fp16, tile by tile; W8: fp32 [n]
  const float* bias = nullptr;        // [n], or null
  const void* norm_weight = nullptr;  // [k], of the norm in front; null: none
  const void* norm_bias = nullptr;    // LayerNorm
  void* k_pages = nullptr;            // of the attention
  void* v_pages = nullptr;
  int32_t n = 0, k = 0;
  int32_t limit = 0;  // the largest code of an activation, 31 or 127
  int32_t boxes = 0;  // rows: tensor copies of a stage
};

constexpr int kOpMaps = 2;  // tensor maps of an op

// What a block of the attention does at a time: one KV head of one sequence, over a part of its
// context (attention_units.cuh).
struct alignas(16) AttentionUnit {
  int32_t sequence, head, part;
  int32_t parts;       // of the head
  int32_t begin, end;  // tokens, the newest one included
  int32_t cached;      // tokens of the sequence in the cache: the newest one is not
  int32_t newest;      // not 0: the part has the newest token
};

// Words of the plan: a block's first unit of an op, and how many; its peer has units (pair.cuh).
constexpr uint32_t kMostUnits = 0x7fff, kPeerWorks = 0x8000;
constexpr int first_unit(uint32_t planned) { return static_cast<int>(planned >> 16); }
constexpr int unit_count(uint32_t planned) { return static_cast<int>(planned & kMostUnits); }
// The block, or its peer.
constexpr bool has_work(uint32_t planned) { return (planned & 0xffff) != 0; }

// A consumer that waits too long writes where it stands, in host memory, and ends the kernel.
struct FaultWord {
  uint32_t set;  // not 0: the rest is valid
  int32_t op;    // of the whole step
  int32_t block;
  int32_t ring;  // not 0: it waited for the ring, else for other blocks
};

// For tests only: delays of up to so many nanoseconds, from this seed, before results are published
// and ring slots freed; an op whose results are withheld.
struct Disturbance {
  uint32_t delay_ns = 0;
  uint32_t seed = 0;
  int32_t withheld_op = -1;
};

// When an op passed these points in a block, in nanoseconds of the GPU's clock.
enum Mark : int { kBegun, kAwaited, kGathered, kDone, kMarks };

struct Args {
  const Op* ops;         // [kLayerOps * layers + 1]
  const uint32_t* plan;  // [ops][blocks]: first unit << 16 | units (work_plan.h)
  const RowMap* maps;    // [ops][kOpMaps]: of its rows, or of K and of V; of none zeros
  int layers;
  int tokens;   // rows of the batch: 1 … kMaxTokens
  bool paired;  // blocks 2 i and 2 i + 1 are a cluster; before the launch: if they can be

  int hidden, heads, kv_heads, head_dim, inter, vocab;
  bool gated, layer_norm;
  int activation;  // flexq_ft::Activation
  float eps;

  const int32_t* ids;        // [tokens]
  const int32_t* positions;  // [tokens]
  const int32_t* pages;      // [tokens, max_pages]
  int max_pages;
  const void* embedding;   // [vocab, hidden]
  const void* positional;  // [positional_rows, hidden], or null
  int positional_rows;
  const float* rope;  // [rope_rows, head_dim], or null
  int rope_rows;

  // Exchanged between blocks; two 16-bit values, or one fp32, in a packet.
  Packet* stream_in;   // [tokens, hidden / 2]   the residual stream a layer begins with
  Packet* stream_mid;  // [tokens, hidden / 2]   and behind its attention
  Packet* qkv;         // [tokens, (heads + 2 kv_heads) * head_dim / 2]
  Packet* attended;    // [tokens, heads * head_dim / 2]
  Packet* raised;      // [tokens, inter / 2]    what the down product reads
  Packet* parts;       // [tokens, heads, max_parts, head_dim + 2]
  int max_parts;       // of one head's context
  uint32_t* counters;  // kCounters lines of 128 bytes
  float* logits;       // [tokens, vocab]

  SharedMap map;
  int in_flight;         // stages that may be on their way,
  int in_flight_filled;  // once so many are filled:
  int filled;

  unsigned long long patience_ns;  // of every wait
  FaultWord* fault;                // in host memory
  unsigned long long* trace;       // [ops][blocks][kMarks], or null
  Disturbance disturbance;
};

// Lines of `counters`: how many blocks (of the attention: heads) have published the results of an
// op in this step, by op kind; how many have ended; the number of the step.
enum Counter : int { kArrived = 0, kEnded = kLayerOps, kStep, kCounters };
constexpr int kCounterWords = 32;  // apart

}  // namespace flexq_ft::step
