// The ops that make weights, on a GPU against the CPU: small enough for the sanitizers.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "flexq_kernels/pack.h"
#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/random_fill.h"
#include "ft/kernels/repack.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

namespace {

bool has_gpu() {
  if (cuda::device_count() > 0) return true;
  std::printf("no GPU: %s\n", cuda::no_device_cause().c_str());
  return false;
}

// A host tensor's twin on the GPU.
struct Twin {
  Buffer buffer;
  explicit Twin(ConstTensor host)
      : buffer(host.dtype(), host.shape(), MemoryKind::kWorkspace, Device::kCuda) {
    cuda::copy(buffer.data(), host.raw(), host.bytes(), {});
  }
  std::vector<uint8_t> read() const {
    std::vector<uint8_t> out(buffer.bytes());
    cuda::copy(out.data(), buffer.data(), out.size(), {});
    cuda::synchronize({});
    return out;
  }
};

std::vector<uint8_t> bytes_of(const Buffer& buffer) {
  const auto* data = static_cast<const uint8_t*>(buffer.data());
  return {data, data + buffer.bytes()};
}

Buffer random(DataType dtype, Shape shape, uint64_t key) {
  Buffer out(dtype, shape, MemoryKind::kWorkspace);
  invokeRandomFill(out.tensor(), {key, 0.0f, 3.0f}, 0, {});
  return out;
}

void compare(DataType to, DataType from, Shape block, bool row_major_nk, RowOrder order = {}) {
  const int64_t n = order.paired == 0 ? 70 : 2 * order.paired, k = 101, row = 3;
  const int64_t column = row_major_nk ? 0 : 5;
  const Buffer src = random(from, block, 1);
  const Buffer dst = random(to, {n, k}, 2);
  const Twin gpu_src(src.tensor());
  const Twin gpu_dst(dst.tensor());
  invokeRepackRows(dst.tensor(), src.tensor(), row, column, row_major_nk, order, {});
  invokeRepackRows(gpu_dst.buffer.tensor(), gpu_src.buffer.tensor(), row, column, row_major_nk,
                   order, {});
  EXPECT(gpu_dst.read() == bytes_of(dst));
}

}  // namespace

TEST(repacked_rows_are_those_of_the_cpu) {
  if (!has_gpu()) return;
  const DataType floats[] = {DataType::kFp32, DataType::kFp16, DataType::kBf16};
  for (const DataType to : floats) {
    for (const DataType from : floats) {
      for (const int64_t rows : {1, 31, 32, 33, 67}) {
        compare(to, from, {rows, 101}, true);
        for (const int64_t columns : {1, 32, 65, 96}) compare(to, from, {columns, rows}, false);
      }
    }
  }
  for (const bool rows : {true, false}) {
    const Shape block = rows ? Shape{67, 101} : Shape{96, 67};
    compare(DataType::kFp16, DataType::kFp32, block, rows, {40});
    compare(DataType::kInt8, DataType::kInt8, block, rows, {40});
  }
  compare(DataType::kInt8, DataType::kInt8, {67, 101}, true);
  compare(DataType::kInt8, DataType::kInt8, {96, 67}, false);
  compare(DataType::kUint8, DataType::kUint8, {67, 101}, true);
}

TEST(placed_tiles_are_those_of_the_cpu) {
  if (!has_gpu()) return;
  for (const int64_t paired : {8, 40, 48}) {
    for (const int64_t k : {1, 576}) {
      const int64_t bytes = flexq_kernels::packed_bytes(2 * paired, k);
      const int64_t tiles = bytes / flexq_kernels::kTileBytes;
      const Buffer given = random(DataType::kUint8, {tiles, flexq_kernels::kTileBytes}, 5);
      const Buffer placed = random(DataType::kUint8, {bytes}, 6);  // overwritten
      const Twin gpu_given(given.tensor());
      const Twin gpu_placed(placed.tensor());
      for (int64_t first = 0; first < tiles; first += 3) {
        const int64_t end = std::min(first + 3, tiles);
        invokePlaceTiles(placed.tensor(), given.tensor().rows(first, end), first, k, {paired}, {});
        invokePlaceTiles(gpu_placed.buffer.tensor(), gpu_given.buffer.tensor().rows(first, end),
                         first, k, {paired}, {});
      }
      EXPECT(gpu_placed.read() == bytes_of(placed));
    }
  }
}

TEST(tiled_scales_are_those_of_the_cpu) {
  if (!has_gpu()) return;
  for (const int64_t n : {1, 16, 40, 129}) {
    for (const int64_t k : {1, 128, 576}) {
      const Buffer scales = random(DataType::kFp16, {flexq_kernels::group_count(k), n}, 3);
      const Buffer tiled =
          random(DataType::kFp16, {flexq_kernels::tiled_scale_count(n, k)}, 4);  // overwritten
      const Twin gpu_scales(scales.tensor());
      const Twin gpu_tiled(tiled.tensor());
      invokeTileScales(tiled.tensor(), scales.tensor(), k, {});
      invokeTileScales(gpu_tiled.buffer.tensor(), gpu_scales.buffer.tensor(), k, {});
      EXPECT(gpu_tiled.read() == bytes_of(tiled));
    }
  }
}

TEST(random_numbers_are_those_of_the_cpu) {
  if (!has_gpu()) return;
  for (const DataType dtype :
       {DataType::kFp32, DataType::kFp16, DataType::kBf16, DataType::kInt8, DataType::kUint8}) {
    for (const int64_t first : {0, 3, 4, 1026}) {
      for (const int64_t count : {1, 5, 4096, 5001}) {
        Buffer host(dtype, {count}, MemoryKind::kWorkspace);
        const Buffer device(dtype, {count}, MemoryKind::kWorkspace, Device::kCuda);
        const RandomFill fill{77, 0.25f, 1.5f};
        invokeRandomFill(host.tensor(), fill, first, {});
        invokeRandomFill(device.tensor(), fill, first, {});
        std::vector<uint8_t> got(device.bytes());
        cuda::copy(got.data(), device.data(), got.size(), {});
        cuda::synchronize({});
        EXPECT(got == bytes_of(host));
      }
    }
  }
}
