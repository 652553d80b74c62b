// A kernel that only reads: every thread keeps kUnroll independent 16-byte loads in flight, blocks
// walk the buffer in turns.
//
//   buffer   |chunk 0|chunk 1| … |chunk g-1|chunk g| …      chunk = kUnroll x kThreads x 16 bytes
//   block     0       1           g-1        0              g = blocks in the grid
//   in a chunk, load u of thread t is at (u x kThreads + t) x 16: each load is one whole line
//   per warp and instruction
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "ft/bench/read_stream.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/launch.cuh"

namespace flexq_ft {

namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 8;
constexpr int kBlocksPerSm = 2;
constexpr int64_t kChunk = int64_t{kThreads} * kUnroll;  // in 16-byte words
constexpr size_t kChunkBytes = kChunk * sizeof(uint4);
constexpr size_t kWanted = size_t{4} << 30;  // over 1 ms a pass at 3.35 TB/s
constexpr int kWarmUps = 5;

// Bits as weights have them: constant data draws less power and lets clocks rise.
__device__ uint32_t scrambled(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

__global__ void __launch_bounds__(kThreads) fill_stream(uint4* data, int64_t chunks) {
  gpu::pdl_launch_dependents();
  gpu::pdl_wait();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < chunks * kChunk;
       i += int64_t{gridDim.x} * kThreads) {
    const uint32_t x = scrambled(static_cast<uint32_t>(i));
    data[i] = make_uint4(x, scrambled(x + 1), scrambled(x + 2), scrambled(x + 3));
  }
}

// Read once and never again: past the first-level cache, and first to leave the second.
__device__ __forceinline__ uint4 load_once(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    read_stream(const uint4* __restrict__ data, int64_t chunks, uint32_t* sink) {
  gpu::pdl_launch_dependents();
  gpu::pdl_wait();
  uint32_t mix = 0;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const uint4* at = data + chunk * kChunk + threadIdx.x;
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = load_once(at + u * kThreads);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) mix ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  // All but never true, which the compiler cannot know: what was read must count as used.
  if (mix == 0x5EED1E55u) *sink = mix;
}

// The current device during one measurement; then the one before again.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : before_(cuda::current_device()) { cuda::use_device(device); }
  ~CurrentDevice() { cudaSetDevice(before_); }

 private:
  int before_;
};

int64_t chunks_of(size_t asked) {
  const size_t free = cuda::free_bytes();
  const size_t bytes = std::min(asked != 0 ? asked : kWanted, free - free / 8);
  return std::max<int64_t>(1, static_cast<int64_t>(bytes / kChunkBytes));
}

}  // namespace

double measure_read_stream_gpu(const ReadStreamOptions& options, int gpu) {
  FLEXQ_FT_CHECK(options.passes >= 1, "passes is ", options.passes);
  const CurrentDevice current(gpu);
  const int64_t chunks = chunks_of(options.bytes);
  const Buffer buffer(static_cast<size_t>(chunks) * kChunkBytes, MemoryKind::kWorkspace,
                      Device::kCuda);
  const Buffer sink(sizeof(uint32_t), MemoryKind::kWorkspace, Device::kCuda);
  cuda::Queue queue;
  const Stream stream{queue.stream().handle, nullptr};  // full edges: passes must not overlap
  const dim3 grid(static_cast<unsigned>(
      std::min<int64_t>(chunks, int64_t{cuda::device_info(gpu).multiprocessors} * kBlocksPerSm)));
  gpu::launch(fill_stream, grid, dim3(kThreads), 0, stream, static_cast<uint4*>(buffer.data()),
              chunks);
  // Events cannot be copied or moved, and vectors want that: hence the pointers.
  std::vector<std::unique_ptr<cuda::Event>> marks;
  for (int pass = 0; pass < kWarmUps + options.passes; ++pass) {
    marks.push_back(std::make_unique<cuda::Event>(true));
    marks.back()->record(stream);
    gpu::launch(read_stream, grid, dim3(kThreads), 0, stream,
                static_cast<const uint4*>(buffer.data()), chunks,
                static_cast<uint32_t*>(sink.data()));
  }
  marks.push_back(std::make_unique<cuda::Event>(true));
  marks.back()->record(stream);
  cuda::synchronize(stream);
  std::vector<double> seconds;
  for (size_t i = kWarmUps; i + 1 < marks.size(); ++i) {
    seconds.push_back(1e-3 * marks[i + 1]->since_ms(*marks[i]));
  }
  return static_cast<double>(buffer.bytes()) / detail::median(seconds.data(), options.passes);
}

}  // namespace flexq_ft
