// What the computing warps of a block have in common.
#pragma once

#include <cstdint>

#include "ft/kernels/float_gpu.cuh"
#include "ft/step/ring.cuh"

namespace flexq_ft::step {

using gpu::from_float;
using gpu::rounded;
using gpu::to_float;

constexpr int kGroup =
    flexq_kernels::kGroupSize;  // values that a warp reads at a time: four a lane
constexpr uint32_t kAllLanes = 0xffffffffu;

// Of the computing warps alone.
__device__ __forceinline__ void compute_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(kComputeThreads) : "memory");
}

// Four neighbouring 16-bit values.
template <typename T>
__device__ __forceinline__ void unpack_quad(float (&x)[4], uint2 quad) {
  T values[4];
  memcpy(values, &quad, 8);
#pragma unroll
  for (int e = 0; e < 4; ++e) x[e] = to_float(values[e]);
}

template <typename T>
__device__ __forceinline__ uint2 pack_quad(const float (&x)[4]) {
  T values[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) values[e] = from_float<T>(x[e]);
  uint2 quad;
  memcpy(&quad, values, 8);
  return quad;
}

template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  T values[2] = {from_float<T>(low), from_float<T>(high)};
  uint32_t pair;
  memcpy(&pair, values, 4);
  return pair;
}

template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  T values[2];
  memcpy(values, &pair, 4);
  return make_float2(to_float(values[0]), to_float(values[1]));
}

__device__ __forceinline__ uint2 load_shared_quad(uint32_t from) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_quad(uint32_t to, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
}

__device__ __forceinline__ void store_shared_word(uint32_t to, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

__device__ __forceinline__ uint32_t load_shared_word(uint32_t from) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}

__device__ __forceinline__ float load_shared_float(uint32_t from) {
  return __uint_as_float(load_shared_word(from));
}

__device__ __forceinline__ void store_shared_float(uint32_t to, float v) {
  store_shared_word(to, __float_as_uint(v));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// The same value, as far as the compiler cannot tell: what follows from it is computed where it is
// asked for, and not kept, in one of too few registers or predicates, until it is asked for again.
__device__ __forceinline__ int anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A computing thread's place. base: the address of the block's shared memory.
struct Place {
  const Args& args;
  uint32_t base;
  int warp, lane;

  // The same anew: what an op computes from it is not kept through all the others.
  __device__ __forceinline__ Place afresh() const {
    uint32_t thread, from = base;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    asm volatile("" : "+r"(from));
    return {args, from, static_cast<int>(thread / 32), static_cast<int>(thread % 32)};
  }
  __device__ __forceinline__ int thread() const { return warp * 32 + lane; }
  __device__ __forceinline__ int team() const { return warp / kTeamWarps; }
  __device__ __forceinline__ int member() const { return warp % kTeamWarps; }
  __device__ __forceinline__ uint32_t at(int offset) const {
    return base + static_cast<uint32_t>(offset);
  }
  __device__ __forceinline__ const Op& op(int index) const {
    return reinterpret_cast<const Op*>(pointer(args.map.ops))[anew(index) & 1];
  }
  __device__ __forceinline__ uint32_t planned(int index) const {
    return load_shared_word(at(args.map.plan + anew(index) * 4));
  }
  // Epochs of this step: of its input, and of a layer's results.
  __device__ __forceinline__ uint32_t input_epoch() const {
    return load_shared_word(at(args.map.epoch));
  }
  __device__ __forceinline__ uint32_t epoch(int layer) const {
    return input_epoch() + static_cast<uint32_t>(layer) + 1;
  }

 private:
  __device__ __forceinline__ const void* pointer(int offset) const {
    extern __shared__ __align__(1024) uint8_t shared[];
    return shared + offset;
  }
};

// Out of line: what is always there must be short.
static __device__ __noinline__ void leave_mark(const Args& args, int index, Mark point) {
  if (threadIdx.x != 0) return;
  args.trace[(static_cast<int64_t>(index) * gridDim.x + blockIdx.x) * kMarks + point] =
      nanoseconds();
}

__device__ __forceinline__ void mark(const Place& place, int index, Mark point) {
  if (place.args.trace != nullptr) leave_mark(place.args, index, point);
}

}  // namespace flexq_ft::step
