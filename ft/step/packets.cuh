// How blocks pass results to each other inside the step kernel.
//
// A packet is one 64-bit word: four bytes of a result and the epoch (step and layer) that made it.
// It is stored and loaded whole (PTX ISA, "Memory Consistency Model": a 64-bit access is single,
// and of a vector access each element is), so a reader that sees the epoch sees the result with
// it: no fence is needed, and a fence would wait for all the copies that the multiprocessor has in
// flight. Readers load again until every epoch is the one they expect.
//
// Each buffer exists once and is written again in the next layer. That is safe:
//   - A block that reads packets for an op publishes, in that op, values computed from them; or its
//     peer does, to which it sends what it made of them (pair.cuh). A block reads nothing for an op
//     in which neither has work.
//   - The ops of a step form a chain: a value of a token in op i is computed from all packets of
//     that token that op i - 1 has made, whichever block of a pair read them. (In the attention
//     from those of its head; the op behind it needs all heads.)
//   - So whoever overwrites a token's packet has, over the chain, waited for values computed from
//     what every reader of the old packet read. Could such a read return the new packet instead,
//     the new packet would depend on itself; the model's no-thin-air axiom forbids that cycle of
//     dependencies.
//   - The residual in an epilogue was seen already, but perhaps by the peer alone, and by another
//     thread. Who reads it there waits for its epoch like everyone.
// Between steps the kernel's end orders everything. Epochs count modulo 2^32.
#pragma once

#include <cstdint>

#include "ft/step/args.h"

namespace flexq_ft::step {

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Says where a wait lasted too long, and ends the kernel.
static __device__ __noinline__ void give_up(FaultWord* fault, int op, bool ring) {
  if (atomicCAS_system(&fault->set, 0u, 1u) == 0u) {
    fault->op = op;
    fault->block = static_cast<int>(blockIdx.x);
    fault->ring = ring ? 1 : 0;
    __threadfence_system();
  } else {
    const uint64_t until = nanoseconds() + 1000000;  // whoever was first still writes
    while (nanoseconds() < until) {
    }
  }
  __trap();
}

// A wait that may not last for ever.
class Patience {
 public:
  __device__ __forceinline__ Patience(const Args& args, int op, bool ring)
      : args_(args), op_(op), ring_(ring) {}

  // To be called once per failed attempt.
  __device__ __forceinline__ void wear() {
    if ((++attempts_ & 127) != 0) return;
    const uint64_t now = nanoseconds();
    if (begin_ == 0) begin_ = now;
    if (now - begin_ > args_.patience_ns) give_up(args_.fault, op_, ring_);
  }

 private:
  const Args& args_;
  uint64_t begin_ = 0;
  uint32_t attempts_ = 0;
  int op_;
  bool ring_;
};

__device__ __forceinline__ bool of_epoch(Packet packet, uint32_t epoch) {
  return static_cast<uint32_t>(packet >> 32) == epoch;
}

__device__ __forceinline__ void store_packet(Packet* to, uint32_t payload, uint32_t epoch) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to),
               "l"(static_cast<Packet>(epoch) << 32 | payload)
               : "memory");
}

// Two neighbours, the first at a multiple of 16 bytes.
__device__ __forceinline__ void store_packets(Packet* to, uint32_t first, uint32_t second,
                                              uint32_t epoch) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to),
               "l"(static_cast<Packet>(epoch) << 32 | first),
               "l"(static_cast<Packet>(epoch) << 32 | second)
               : "memory");
}

__device__ __forceinline__ Packet load_packet(const Packet* from) {
  Packet packet;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(packet) : "l"(from) : "memory");
  return packet;
}

__device__ __forceinline__ void load_packets(Packet (&out)[2], const Packet* from) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(out[0]), "=l"(out[1])
               : "l"(from)
               : "memory");
}

// kCount pairs of packets, those that are wanted; the loads of one attempt are in flight together.
// Pair i lies at from(i); what is not wanted is 0.
template <int kCount, typename From, typename Wanted>
__device__ __forceinline__ void receive(uint2 (&out)[kCount], const From& from,
                                        const Wanted& wanted, uint32_t epoch, Patience patience) {
  for (;;) {
    Packet packets[kCount][2];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      packets[i][0] = packets[i][1] = static_cast<Packet>(epoch) << 32;
      if (wanted(i)) load_packets(packets[i], from(i));
    }
    bool all = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      all = all && of_epoch(packets[i][0], epoch) && of_epoch(packets[i][1], epoch);
      out[i] =
          make_uint2(static_cast<uint32_t>(packets[i][0]), static_cast<uint32_t>(packets[i][1]));
    }
    if (all) return;
    patience.wear();
  }
}

// ---- Counters: only hints of when to look, so that nobody polls packets for long ----

__device__ __forceinline__ void count_arrival(const Args& args, int kind) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(args.counters + kind * kCounterWords)
               : "memory");
}

__device__ __forceinline__ void await_arrivals(const Args& args, int kind, uint32_t count, int op) {
  Patience patience(args, op, false);
  const uint32_t* const counter = args.counters + kind * kCounterWords;
  for (;;) {
    uint32_t arrived;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
    if (arrived >= count) return;
    patience.wear();
  }
}

// A test's delay, different for every warp, op and place.
static __device__ __noinline__ void delay(const Disturbance& d, uint32_t place) {
  uint32_t x = (d.seed + place) * 2654435761u ^ (blockIdx.x * 40503u + threadIdx.x / 32 * 977u);
  x ^= x >> 15;
  x *= 0x2c1b3c6du;
  x ^= x >> 12;
  const uint64_t until = nanoseconds() + x % d.delay_ns;
  while (nanoseconds() < until) {
  }
}

__device__ __forceinline__ void disturb(const Args& args, uint32_t place) {
  if (args.disturbance.delay_ns != 0) delay(args.disturbance, place);
}

}  // namespace flexq_ft::step
