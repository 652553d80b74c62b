// Two blocks of a cluster, which make the operands of several sequences together: each reads,
// norms and quantises every second token, and writes it to both blocks' shared memory.
//
// Two barriers in each block order that, a phase for each product op that the pair has work in:
//   free   the peer's computing warps arrive when they begin the op: by then they read nothing any
//          more that lies where their operand will be, since what they loaded has become sums that
//          they handed over, or lies behind a barrier of the block. Who writes there waits for it;
//          the peer does not end the op without what it writes, so no phase is missed.
//   full   counts the bytes that the peer writes here; all computing warps wait for it. The peer
//          writes those of the next op when all have begun that, so no phase is missed either.
#pragma once

#include "flexq_kernels/gpu/hopper.cuh"
#include "ft/step/block.cuh"

namespace flexq_ft::step {

// A computing warp's view. kTokens 1: there is nothing to share.
template <int kTokens>
class Pair {
 public:
  __device__ __forceinline__ Pair(const Args& args, uint32_t base) : args_(args), base_(base) {}

  __device__ __forceinline__ bool exists() const { return kTokens > 1 && args_.paired; }
  __device__ __forceinline__ int rank() const { return static_cast<int>(blockIdx.x % 2); }
  // Tokens of the one block, or of the other.
  __device__ __forceinline__ int tokens(int of_rank) const {
    return (args_.tokens + 1 - of_rank) / 2;
  }

  // By one thread, before a barrier of the cluster.
  __device__ __forceinline__ void make() const {
    if (!exists()) return;
    mbarrier_init(full(), 1);
    mbarrier_init(free(), kWarps);
  }

  // At the beginning of a product op.
  __device__ __forceinline__ void ready(int op) const {
    if (!exists()) return;
    disturb(args_, full() + static_cast<uint32_t>(op));
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      flexq_kernels::gpu::mbarrier_arrive_at(free(), static_cast<uint32_t>(rank() ^ 1));
    }
  }
  // Before the first value. The peer will send so many bytes; this warp sends some or none.
  __device__ __forceinline__ void begin(int bytes, bool sends, int op) const {
    if (!exists()) return;
    if (threadIdx.x == 0) mbarrier_arrive_expecting(full(), static_cast<uint32_t>(bytes));
    if (!sends) return;
    Patience patience(args_, op, false);
    while (!mbarrier_try_wait(free(), parity_)) patience.wear();
  }
  // What was stored at this address here.
  __device__ __forceinline__ void send(uint32_t at, uint32_t word) const {
    if (!exists()) return;
    asm volatile(
        "{\n"
        ".reg .b32 to, counted;\n"
        "mapa.shared::cluster.u32 to, %0, %3;\n"
        "mapa.shared::cluster.u32 counted, %2, %3;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [to], %1, [counted];\n"
        "}\n" ::"r"(at),
        "r"(word), "r"(full()), "r"(rank() ^ 1)
        : "memory");
  }
  __device__ __forceinline__ void send(uint32_t at, uint2 quad) const {
    if (!exists()) return;
    asm volatile(
        "{\n"
        ".reg .b32 to, counted;\n"
        "mapa.shared::cluster.u32 to, %0, %4;\n"
        "mapa.shared::cluster.u32 counted, %3, %4;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [to], {%1, %2}, "
        "[counted];\n"
        "}\n" ::"r"(at),
        "r"(quad.x), "r"(quad.y), "r"(full()), "r"(rank() ^ 1)
        : "memory");
  }
  // The peer's values are there.
  __device__ __forceinline__ void end(int op) {
    if (!exists()) return;
    Patience patience(args_, op, false);
    while (!flexq_kernels::gpu::mbarrier_try_wait_cluster(full(), parity_)) patience.wear();
    parity_ ^= 1;
  }

 private:
  __device__ __forceinline__ uint32_t full() const {
    return base_ + static_cast<uint32_t>(args_.map.pair);
  }
  __device__ __forceinline__ uint32_t free() const { return full() + 8; }

  const Args& args_;
  uint32_t base_;
  uint32_t parity_ = 0;
};

}  // namespace flexq_ft::step
