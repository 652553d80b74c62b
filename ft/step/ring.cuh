// The ring of stages in shared memory through which warps of their own stream everything that a
// block reads in a step, in order of use and across the ends of ops: memory is busy while the other
// warps wait for other blocks.
#pragma once

#include <cstdint>

#include "flexq_kernels/gpu/hopper.cuh"
#include "ft/step/packets.cuh"

namespace flexq_ft::step {

using flexq_kernels::gpu::copy_bytes;
using flexq_kernels::gpu::mbarrier_arrive;
using flexq_kernels::gpu::mbarrier_arrive_expecting;
using flexq_kernels::gpu::mbarrier_init;
using flexq_kernels::gpu::mbarrier_init_fence;
using flexq_kernels::gpu::mbarrier_passed;
using flexq_kernels::gpu::mbarrier_try_wait;
using flexq_kernels::gpu::shared_address;

// Barriers of a slot, side by side: full and empty.
struct RingPlace {
  const Args& args;
  uint32_t base;  // of the shared memory

  __device__ __forceinline__ int stages() const { return args.map.stages; }
  __device__ __forceinline__ uint32_t barriers() const {
    return base + static_cast<uint32_t>(args.map.barriers);
  }
  __device__ __forceinline__ uint32_t barriers_end() const {
    return barriers() + static_cast<uint32_t>(args.map.barrier_bytes);
  }
  __device__ __forceinline__ uint32_t stage(int slot) const {
    return base + static_cast<uint32_t>(slot * kStageBytes);
  }
  __device__ __forceinline__ uint32_t full(int slot) const {
    return barriers() + static_cast<uint32_t>(slot * kSlotBarriers);
  }
  __device__ __forceinline__ uint32_t empty(int slot) const { return full(slot) + 8; }
};

// In a register from here on, and not computed again.
__device__ __forceinline__ void keep(uint32_t& value) { asm volatile("" : "+r"(value)); }

// Out of line: what is always there must be short.
static __device__ __noinline__ void wait_on(uint32_t barrier, uint32_t parity, const Args& args,
                                            int op) {
  Patience patience(args, op, true);
  while (!mbarrier_try_wait(barrier, parity)) patience.wear();
}

__device__ __forceinline__ void bounded_wait(uint32_t barrier, uint32_t parity, const Args& args,
                                             int op) {
  if (!mbarrier_try_wait(barrier, parity)) wait_on(barrier, parity, args, op);
}

// By thread 0, before a barrier of the block.
__device__ __forceinline__ void make_ring(const RingPlace& ring) {
  for (int i = 0; i < ring.stages(); ++i) {
    mbarrier_init(ring.full(i), 1);
    mbarrier_init(ring.empty(i), kTeamWarps);
  }
  mbarrier_init_fence();
}

// A computing warp's view. The teams take the stages in turn, and there is an even number of slots:
// so a slot is always one team's, and its warps wait for every stage that is ever in it. (Who lets
// one pass unseen could not tell the next from the one before: see the writer.)
class RingReader {
 public:
  // A stage of the team's: its slot's full barrier, and the parity that ends its phase.
  struct Turn {
    uint32_t full, parity;
  };

  __device__ __forceinline__ RingReader(const RingPlace& ring, int team)
      : ring_(ring), full_(ring.full(team)), state_(static_cast<uint32_t>(team) << 1) {}

  // How many stages are taken by the other team before this team's next one: 0 or 1.
  __device__ __forceinline__ int ahead() const { return static_cast<int>(state_ >> 1); }
  // So many stages have been dealt with, by both teams.
  __device__ __forceinline__ void pass(int stages) {
    state_ ^= static_cast<uint32_t>(stages & 1) << 1;
  }

  // The team's next stage.
  __device__ __forceinline__ uint32_t wait(int op) const {
    await(turn(), op);
    return stage(turn());
  }
  __device__ __forceinline__ void release() {
    disturb(ring_.args, full_);
    __syncwarp();
    if (threadIdx.x % 32 == 0) free(turn());
    advance();
  }

  // Stage i of those to come, for all warps to read: its own team has waited for it, and a barrier
  // of the block is behind that.
  __device__ __forceinline__ uint32_t peek(int i) const {
    const auto bytes = static_cast<uint32_t>(ring_.args.map.barrier_bytes);
    uint32_t full = full_ + static_cast<uint32_t>((i - ahead()) * kSlotBarriers);
    if (full < ring_.barriers()) full += bytes;
    if (full >= ring_.barriers_end()) full -= bytes;
    return stage(Turn{full, 0});
  }
  // To the team's stage behind, without freeing this one.
  __device__ __forceinline__ void advance() { set(behind(turn(), ring_.barriers_end())); }

 private:
  friend class StagePairs;

  __device__ __forceinline__ Turn behind(Turn turn, uint32_t end_of_barriers) const {
    turn.full += kTeams * kSlotBarriers;
    if (turn.full >= end_of_barriers) {
      turn.full -= static_cast<uint32_t>(ring_.args.map.barrier_bytes);
      turn.parity ^= 1;
    }
    return turn;
  }
  __device__ __forceinline__ uint32_t stage(const Turn& turn) const {
    return ring_.base + (turn.full - ring_.barriers()) * (kStageBytes / kSlotBarriers);
  }
  __device__ __forceinline__ void await(const Turn& turn, int op) const {
    bounded_wait(turn.full, turn.parity, ring_.args, op);
  }
  // By one lane.
  __device__ __forceinline__ void free(const Turn& turn) const { mbarrier_arrive(turn.full + 8); }

  __device__ __forceinline__ Turn turn() const { return {full_, state_ & 1}; }
  __device__ __forceinline__ void set(Turn turn) {
    full_ = turn.full;
    state_ = (state_ & 2) | turn.parity;
  }

  RingPlace ring_;
  uint32_t full_, state_;  // the team's next turn; twice ahead(), and its parity
};

// Two of a team's stages at a time: so a warp has twice as much to load and to multiply between two
// waits. Whether the next two have arrived is asked as soon as these two are loaded; what is
// multiplied meanwhile hides the delay of the answer.
class StagePairs {
 public:
  __device__ __forceinline__ StagePairs(RingReader& ring, int op)
      : ring_(ring), first_(ring.turn()), end_(ring.ring_.barriers_end()), op_(op) {
    keep(end_);
    look();
  }

  // A stage is where its full barrier's address, times kScale, plus this is.
  static constexpr uint32_t kScale = kStageBytes / kSlotBarriers;
  __device__ __forceinline__ uint32_t origin() const {
    return ring_.ring_.base - ring_.ring_.barriers() * kScale;
  }
  __device__ __forceinline__ uint32_t first() const { return first_.full * kScale; }
  __device__ __forceinline__ uint32_t second() const { return second_.full * kScale; }

  __device__ __forceinline__ const Args& args() const { return ring_.ring_.args; }

  // kCount: 2, or 1 where a row has no more.
  template <int kCount>
  __device__ __forceinline__ void wait() const {
    if (there_) return;
    disturb(ring_.ring_.args, first_.full);
    ring_.await(first_, op_);
    if (kCount == 2) ring_.await(second_, op_);
  }
  template <int kCount>
  __device__ __forceinline__ void release() {
    __syncwarp();
    const bool frees = threadIdx.x % 32 == 0;
    if (frees) ring_.free(first_);
    if (kCount == 2 && frees) ring_.free(second_);
    first_ = kCount == 2 ? behind(second_) : second_;
    look();
  }
  // The reader goes on behind the last stage released.
  __device__ __forceinline__ void end() { ring_.set(first_); }

 private:
  __device__ __forceinline__ RingReader::Turn behind(RingReader::Turn turn) const {
    return ring_.behind(turn, end_);
  }
  // In a test with delays nothing is ever there at once.
  __device__ __forceinline__ void look() {
    second_ = behind(first_);
    const bool first = mbarrier_passed(first_.full, first_.parity);
    there_ = mbarrier_passed(second_.full, second_.parity) && first &&
             ring_.ring_.args.disturbance.delay_ns == 0;
  }

  RingReader& ring_;
  RingReader::Turn first_, second_;
  uint32_t end_;  // of the barriers
  int op_;
  bool there_;
};

// A streaming warp's view; the warps take stages in turn, since what one does for a stage takes
// longer than memory takes to fill it. Deep queues in front of the memory would delay the small
// reads that other blocks wait for: so many stages are on their way at most, and fewer once the
// ring is well filled, when the others are in a phase of waiting.
//
// A barrier tells the phase it is in from the one before, not from the one two before: a warp that
// asks for an old stage must not come so late that the stage's slot was filled again. Two kinds of
// numbers in flight are safe (in_flight_of chooses). Odd ones: before stage m a warp waits for
// m - in_flight, a stage of the other warp, which is then at m - in_flight + 2 or later, and asks
// for nothing before m - 2 in_flight + 2. The slot of that one is filled again by its successor,
// `stages` further on, which is behind m where 2 in_flight - 2 < stages. Even ones, in any ring: a
// warp waits for a stage of its own, in a slot that nobody else fills. Never one of each: odd ones
// need the other warp to wait as well. How well the ring is filled is only a hint.
class RingWriter {
 public:
  __device__ __forceinline__ RingWriter(const RingPlace& ring, int self)
      : ring_(ring), args_(ring.args), turn_(self) {}

  // The next stage, if it is this warp's turn: waits until there is room and announces the stage's
  // bytes. Of the whole warp.
  __device__ __forceinline__ bool begin(uint32_t bytes, int op) {
    const bool mine = turn_ == 0;
    turn_ = mine ? kStreamWarps - 1 : turn_ - 1;
    if (mine) {
      await_room(op);
      if (threadIdx.x % 32 == 0) mbarrier_arrive_expecting(ring_.full(slot_), bytes);
      __syncwarp();
      stage_ = ring_.stage(slot_);
      full_ = ring_.full(slot_);
    }
    if (written_ < ring_.stages()) ++written_;
    if (++slot_ == ring_.stages()) {
      slot_ = 0;
      parity_ ^= 1;
    }
    return mine;
  }

  // Of the stage begun last, for any lane's copies.
  __device__ __forceinline__ uint32_t stage() const { return stage_; }
  __device__ __forceinline__ uint32_t full() const { return full_; }

 private:
  // All barriers are asked at once: an answer takes as long as the rest of a stage's work.
  __device__ __forceinline__ void await_room(int op) const {
    const Earlier freed(*this, args_.filled);
    const Earlier few(*this, args_.in_flight_filled), many(*this, args_.in_flight);
    const bool free = mbarrier_passed(ring_.empty(slot_), parity_ ^ 1);
    const bool is_freed = mbarrier_passed(ring_.empty(freed.slot), freed.parity);
    const bool few_arrived = mbarrier_passed(ring_.full(few.slot), few.parity);
    const bool many_arrived = mbarrier_passed(ring_.full(many.slot), many.parity);
    if (!free) wait_on(ring_.empty(slot_), parity_ ^ 1, args_, op);
    const bool filled = written_ >= args_.filled && !is_freed;
    if (written_ < (filled ? args_.in_flight_filled : args_.in_flight)) return;
    // Before the slot was free, a stage asked for may have been a phase back; then it asks again.
    if (free && (filled ? few_arrived : many_arrived)) return;
    const Earlier& last = filled ? few : many;
    wait_on(ring_.full(last.slot), last.parity, args_, op);
  }

  // The place of the stage written so many before the next one; at most all of the ring.
  struct Earlier {
    int slot;
    uint32_t parity;

    __device__ __forceinline__ Earlier(const RingWriter& ring, int stages)
        : slot(ring.slot_ - stages), parity(ring.parity_) {
      if (slot < 0) {
        slot += ring.ring_.stages();
        parity ^= 1;
      }
    }
  };

  RingPlace ring_;
  const Args& args_;
  int turn_;  // stages until this warp's next one
  int slot_ = 0;
  uint32_t parity_ = 0;
  int written_ = 0;  // stages; no more are counted once the ring was full
  uint32_t stage_ = 0, full_ = 0;
};

}  // namespace flexq_ft::step
