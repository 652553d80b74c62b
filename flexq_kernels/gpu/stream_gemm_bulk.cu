// The stream family on sm_90. One block per multiprocessor, or a cluster of `kSplit` neighbours,
// has an even share of whole row tiles, and works through them in passes of up to kTiles:
//
//             |<------------------ k ------------------>|
//             | groups 0-7  |  8-15       | …           |       stage: a row tile's groups of one
//   tile 0    | stage 0     | stage 3     |             |       block (of 8 / kSplit chains), codes
//   tile 1    | stage 1     | stage 4     |             |       and scales: two bulk copies
//   tile 2    | stage 2     | stage 5     |             |
//
// Stages travel through a ring in shared memory. Warp (chain, part) multiplies the group of its
// chain with the tokens of its part. The tokens of a block of groups are read once, into registers,
// for all row tiles of the pass, so that x costs the L2 cache little beside the weight: 128 m bytes
// for kTiles * 1568.
//
// Before the kernel in front has ended (pdl_wait) the whole ring is filled: weights never change.
// It takes less than half of a multiprocessor's shared memory, and the block half of its registers,
// so that the next GEMM's blocks start beside this one's and fill their rings while this one ends:
// that hides launch, ramp, uneven shares and the end of the sums. At any time no more than `limit`
// stages are under way: a deeper queue at the memory delays what the multiplying warps wait for,
// and streams no faster. No warp is set aside for the copies, it would cost the others a quarter of
// their registers: warp 0 asks for stage i + limit when it has multiplied stage i.
#include <algorithm>

#include "flexq_kernels/check.h"
#include "flexq_kernels/gpu/dependent_launch.cuh"
#include "flexq_kernels/gpu/stream_gemm_finish.cuh"

namespace flexq_kernels::gpu {

namespace {

constexpr int kBulkThreads = kStreamWarps * 32;

// Blocks of tokens on their way to a warp, besides the one that it multiplies. Of 8 tokens there is
// room for two, and few row tiles to hide the latency of L2 behind.
template <int kTokenTiles>
constexpr int kTokenSlots = kTokenTiles == 1 ? 2 : 1;

template <int kSplit>
struct StreamRing {
  static constexpr int kChains = kStreamChains / kSplit;
  static constexpr int kScales = kChains * kTileBytes;  // where a stage has them
  static constexpr int kStageBytes = kScales + kChains * kTileScaleBytes;

  uint32_t memory;
  uint32_t barriers;  // full[stages], empty[stages], written, read
  int stages;

  __device__ __forceinline__ uint32_t stage(int i) const { return memory + i * kStageBytes; }
  __device__ __forceinline__ uint32_t full(int i) const { return barriers + 8 * i; }
  __device__ __forceinline__ uint32_t empty(int i) const { return barriers + 8 * (stages + i); }
  __device__ __forceinline__ uint32_t written() const { return barriers + 16 * stages; }
  __device__ __forceinline__ uint32_t read() const { return written() + 8; }
};

// What a block of a cluster works on.
struct StreamWork {
  StreamShare share;
  int first_chain;
  int blocks;  // of groups
};

template <int kSplit>
__device__ __forceinline__ StreamWork stream_work(const StreamArgs& args, int rank, int tiles) {
  const int first_chain = rank * (kStreamChains / kSplit);
  return {StreamShare(static_cast<int>(blockIdx.x) / kSplit, static_cast<int>(gridDim.x) / kSplit,
                      args.row_tiles, tiles),
          first_chain, stream_blocks(args.groups, first_chain)};
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// A place in the ring, and how often it has come round (mod 2).
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Asks for stages, one by one.
template <int kSplit>
class StageSource {
  using Ring = StreamRing<kSplit>;

 public:
  __device__ __forceinline__ StageSource(const StreamArgs& args, const StreamWork& work,
                                         const Ring& ring)
      : args_(args),
        ring_(ring),
        first_chain_(work.first_chain),
        cursor_(work.share, work.blocks) {}

  __device__ __forceinline__ bool left() const { return cursor_.left(); }

  // The next stage, once its place is free; none after the last.
  __device__ __forceinline__ void ask() {
    if (!left()) return;
    mbarrier_wait(ring_.empty(place_.stage), place_.parity ^ 1);
    const int groups =
        stream_block_groups(args_.groups, first_chain_, Ring::kChains, cursor_.block());
    const int64_t tile =
        int64_t{cursor_.tile()} * args_.groups + first_chain_ + cursor_.block() * kStreamChains;
    const uint32_t code_bytes = groups * kTileBytes, scale_bytes = groups * kTileScaleBytes;
    const uint32_t to = ring_.stage(place_.stage), full = ring_.full(place_.stage);
    const uint64_t policy = stream_once_policy();
    mbarrier_arrive_expecting(full, code_bytes + scale_bytes);
    copy_bulk(to, args_.w.codes + tile * kTileBytes, code_bytes, full, policy);
    copy_bulk(to + Ring::kScales, args_.w.scales + tile * kTileRows, scale_bytes, full, policy);
    place_.advance(args_.stages);
    cursor_.advance();
  }

 private:
  const StreamArgs& args_;
  const Ring& ring_;
  int first_chain_;
  StreamCursor cursor_;
  RingPlace place_;
};

// How the multiplying warps of a cluster meet at the end of a pass.
template <int kSplit>
struct BulkMeet {
  const StreamRing<kSplit>& ring;
  int lane;
  uint32_t parity = 0;

  __device__ __forceinline__ void arrive(uint32_t barrier) const {
    __syncwarp();
    if constexpr (kSplit == 1) {
      if (lane == 0) mbarrier_arrive(barrier);
    } else {
      if (lane < kSplit) mbarrier_arrive_remote(cluster_address(barrier, lane));
    }
  }
  __device__ __forceinline__ void wait(uint32_t barrier, uint32_t of) const {
    if constexpr (kSplit == 1) {
      mbarrier_wait(barrier, of);
    } else {
      mbarrier_wait_cluster(barrier, of);
    }
  }

  __device__ __forceinline__ void before() const { wait(ring.read(), parity ^ 1); }
  __device__ __forceinline__ void between() const {
    arrive(ring.written());
    wait(ring.written(), parity);
  }
  __device__ __forceinline__ void after() {
    arrive(ring.read());
    parity ^= 1;
  }
};

template <int kTokenTiles, int kSplit, int kTiles, int kAtOnce, bool kSums>
class BulkWarp {
  using Ring = StreamRing<kSplit>;
  using Reader = TokenReader<kTokenTiles>;
  static constexpr int kSlots = kTokenSlots<kTokenTiles>;
  using Tokens = TokenFragment<kTokenTiles>;
  using Finish = StreamFinish<kTokenTiles, kSplit, kTiles, kAtOnce>;

 public:
  __device__ __forceinline__ BulkWarp(const StreamArgs& args, const StreamWork& work,
                                      const Ring& ring, int warp, int lane)
      : args_(args),
        work_(work),
        ring_(ring),
        source_(args, work, ring),
        lane_(lane),
        copies_(warp == 0 && lane == 0),
        chain_(warp % Ring::kChains),
        first_token_(warp / Ring::kChains * kTokenTile * kTokenTiles) {}

  // Fills the ring, `limit` stages at a time.
  __device__ __forceinline__ void fill() {
    if (!copies_) return;
    for (int i = 0; i < args_.stages; ++i) {
      if (i >= args_.limit && source_.left()) mbarrier_wait(ring_.full(i - args_.limit), 0);
      source_.ask();
    }
  }

  // slots: of the warp, for tokens that are on their way.
  __device__ __forceinline__ void multiply(uint32_t slots, const Finish& finish,
                                           BulkMeet<kSplit>& meet) {
    const Reader reader(args_.x, args_.m, args_.groups, first_token_, lane_);
    const int passes = work_.share.passes();
    int to_fetch = passes * work_.blocks, next_block = 0;
    const auto fetch = [&](int slot) {
      __syncwarp();  // the slot has been read
      if (to_fetch > 0) {
        --to_fetch;
        // Past the last group: that one again, which is not multiplied.
        reader.copy(slots + slot * Reader::kSlotBytes, min(group(next_block), args_.groups - 1));
        if (++next_block == work_.blocks) next_block = 0;
      }
      commit_copies();  // an empty group keeps the count
    };
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) fetch(slot);
    int slot = 0;
    for (int pass = 0; pass < passes; ++pass) {
      const StreamRange tiles = work_.share.pass(pass);
      float y[kTiles][kTokenTiles][4] = {};
#pragma unroll 1
      for (int block = 0; block < work_.blocks; ++block) {
        wait_copies<kSlots - 1>();
        __syncwarp();
        const Tokens x = reader.load_slot(slots + slot * Reader::kSlotBytes);
        fetch(slot);
        slot = slot + 1 == kSlots ? 0 : slot + 1;
        multiply_block(y, x, tiles, block);
      }
      if constexpr (!kSums) finish.run(y, tiles.first, tiles.count, meet);
    }
  }

 private:
  __device__ __forceinline__ int group(int block) const {
    return work_.first_chain + chain_ + block * kStreamChains;
  }

  __device__ __forceinline__ void take(TileWords& w, TileScales& scales,
                                       const RingPlace& place) const {
    mbarrier_wait(ring_.full(place.stage), place.parity);
    const uint32_t stage = ring_.stage(place.stage);
    w = load_tile(stage + chain_ * kTileBytes, lane_);
    scales = load_tile_scales(stage + Ring::kScales + chain_ * kTileScaleBytes, lane_);
  }

  // The stage has been multiplied by this warp: its place is free, and warp 0 asks for the one
  // that is `limit` ahead of it, as far as fill() has not.
  __device__ __forceinline__ void give_back() {
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(ring_.empty(place_.stage));
    if (copies_ && ++given_back_ > args_.stages - min(args_.limit, args_.stages - 1)) source_.ask();
  }

  // One block of groups of the row tiles of a pass. Of a single token tile the mma are few and wait
  // for each other, so the words of the next row tile are loaded meanwhile.
  __device__ __forceinline__ void multiply_block(float (&y)[kTiles][kTokenTiles][4],
                                                 const Tokens& x, const StreamRange& tiles,
                                                 int block) {
    constexpr bool kAhead = kTokenTiles == 1;
    const bool active = group(block) < args_.groups && first_token_ < args_.m;
    TileWords w[2];
    TileScales scales[2];
    if (kAhead) take(w[0], scales[0], place_);
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      if (r >= tiles.count) break;
      RingPlace next = place_;
      next.advance(args_.stages);
      const int now = kAhead ? r % 2 : 0;
      if (!kAhead) take(w[0], scales[0], place_);
      if (kAhead && r + 1 < tiles.count) take(w[(r + 1) % 2], scales[(r + 1) % 2], next);
      if (active) {
        int32_t sum[kTokenTiles][4];
        multiply_tile(sum, w[now], x);
        if constexpr (kSums) {
          store_group_sums(args_, sum, tiles.first + r, first_token_, group(block), lane_);
        } else {
          add_scaled(y[r], sum, scales[now], x);
        }
      }
      give_back();
      place_ = next;
    }
  }

  const StreamArgs& args_;
  const StreamWork& work_;
  const Ring& ring_;
  StageSource<kSplit> source_;
  int lane_;
  bool copies_;
  int chain_;  // of the block's
  int first_token_;
  RingPlace place_;
  int given_back_ = 0;
};

#endif

template <int kTokenTiles, int kSplit, int kTiles, int kAtOnce, bool kSums>
__device__ __forceinline__ void bulk_block(const StreamArgs& args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using Finish = StreamFinish<kTokenTiles, kSplit, kTiles, kAtOnce>;
  using Ring = StreamRing<kSplit>;
  constexpr int kSlotBytes = kTokenSlots<kTokenTiles> * TokenReader<kTokenTiles>::kSlotBytes;
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int rank = kSplit > 1 ? static_cast<int>(cluster_rank()) : 0;
  uint8_t* slots = shared + args.stages * Ring::kStageBytes;
  uint8_t* partial = slots + kStreamWarps * kSlotBytes;
  const Ring ring{shared_address(shared), shared_address(partial + Finish::kPartialBytes),
                  args.stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < args.stages; ++i) {
      mbarrier_init(ring.full(i), 1);
      mbarrier_init(ring.empty(i), kStreamWarps);
    }
    mbarrier_init(ring.written(), kStreamWarps * kSplit);
    mbarrier_init(ring.read(), kStreamWarps * kSplit);
    mbarrier_init_fence();
  }
  if constexpr (kSplit > 1) {
    cluster_sync();  // blocks arrive at each other's barriers
  } else {
    __syncthreads();
  }
  const StreamWork work = stream_work<kSplit>(args, rank, kTiles);
  BulkWarp<kTokenTiles, kSplit, kTiles, kAtOnce, kSums> self(args, work, ring, warp, lane);
  self.fill();
  pdl_wait();
  const Finish finish{args, reinterpret_cast<float*>(partial), warp, lane, rank};
  BulkMeet<kSplit> meet{ring, lane};
  self.multiply(shared_address(slots) + warp * kSlotBytes, finish, meet);
  // Other blocks of the cluster may read this one's sums until they say that they have.
  if constexpr (kSplit > 1 && !kSums) meet.before();
#endif
}

template <int kTokenTiles, int kTiles, int kAtOnce, int kResident, bool kSums>
__global__ void __launch_bounds__(kBulkThreads, kResident)
    sm90_w6ax_stream_gemm(const __grid_constant__ StreamArgs args) {
  bulk_block<kTokenTiles, 1, kTiles, kAtOnce, kSums>(args);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FLEXQ_CLUSTER(blocks)  // compiled for others too, never launched there
#else
#define FLEXQ_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#endif

template <int kTokenTiles, int kSplit, int kTiles, int kAtOnce, int kResident, bool kSums>
__global__ void FLEXQ_CLUSTER(kSplit) __launch_bounds__(kBulkThreads, kResident)
    sm90_w6ax_stream_gemm_cluster(const __grid_constant__ StreamArgs args) {
  bulk_block<kTokenTiles, kSplit, kTiles, kAtOnce, kSums>(args);
}

template <int kTokenTiles, int kSplit, int kTiles, int kAtOnce, int kResident, bool kSums>
constexpr auto bulk_kernel() {
  if constexpr (kSplit == 1) {
    return sm90_w6ax_stream_gemm<kTokenTiles, kTiles, kAtOnce, kResident, kSums>;
  } else {
    return sm90_w6ax_stream_gemm_cluster<kTokenTiles, kSplit, kTiles, kAtOnce, kResident, kSums>;
  }
}

// True if config and m fit the instance, after launching it.
template <int kTokenTiles, int kSplit, int kTiles, int kAtOnce, int kResident = 2>
bool launch_if(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  using Finish = StreamFinish<kTokenTiles, kSplit, kTiles, kAtOnce>;
  if (config.split != kSplit || config.tiles != kTiles || args.m > Finish::kTokens) return false;
  const size_t shared =
      static_cast<size_t>(args.stages) * (StreamRing<kSplit>::kStageBytes + 2 * sizeof(uint64_t)) +
      kStreamWarps * kTokenSlots<kTokenTiles> * TokenReader<kTokenTiles>::kSlotBytes +
      Finish::kPartialBytes + 2 * sizeof(uint64_t);
  const size_t most = current_device().shared_per_block;
  FLEXQ_CHECK(shared <= most, config, ": ", shared, " bytes of shared memory, and a block has ",
              most);
  const int workers = std::min(args.row_tiles, current_device().multiprocessors / kSplit);
  const auto launch_one = [&](auto* kernel) {
    prefer_shared_memory(reinterpret_cast<const void*>(kernel));
    launch_kernel(kernel, dim3(static_cast<unsigned>(workers * kSplit)), dim3(kBulkThreads), shared,
                  launch, args);
  };
  if (args.sums == nullptr) {
    launch_one(bulk_kernel<kTokenTiles, kSplit, kTiles, kAtOnce, kResident, false>());
  } else {
    launch_one(bulk_kernel<kTokenTiles, kSplit, kTiles, kAtOnce, 1, true>());
  }
  return true;
}

}  // namespace

// In order of tokens: the first that fits is the cheapest. stream_configs() knows the list.
bool launch_stream_bulk(const StreamArgs& args, const StreamConfig& config, const Launch& launch) {
  return launch_if<1, 1, 6, 1>(args, config, launch) ||
         launch_if<2, 1, 4, 1>(args, config, launch) ||
         launch_if<1, 2, 6, 2>(args, config, launch) ||
         launch_if<2, 2, 4, 2>(args, config, launch) ||
         launch_if<2, 2, 8, 2, 1>(args, config, launch) ||
         launch_if<2, 4, 4, 2>(args, config, launch) ||
         launch_if<2, 4, 8, 2, 1>(args, config, launch) ||
         launch_if<4, 2, 6, 1, 1>(args, config, launch);
}

}  // namespace flexq_kernels::gpu
