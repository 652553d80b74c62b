// WeightTarget: where weights are put, one class per device. The source reads (or makes) blocks of
// host memory; the target brings them into the device's layout and memory.
#pragma once

#include <memory>

#include "ft/kernels/random_fill.h"
#include "ft/weights/model_weights.h"

namespace flexq_ft {

// How a block of a linear weight lies: its own rows, or [K, N] as FasterTransformer stores floats.
enum class BlockOrder : uint8_t { kRows, kColumns };

class WeightTarget {
 public:
  virtual ~WeightTarget() = default;

  virtual Device device() const = 0;
  virtual Layout layout(Scheme scheme) const = 0;
  // Of a weight of two parts of so many rows each. Whoever puts rows numbers them as they are
  // given, part after part; the target knows where they lie.
  virtual RowOrder paired(int64_t rows) const = 0;

  // Memory for the weight's codes, in its layout.
  virtual Buffer codes(const LinearWeight& weight) = 0;
  virtual Buffer values(DataType dtype, Shape shape);

  // Host memory for the next block, of at most block_bytes(); the put that follows takes it.
  virtual size_t block_bytes() const = 0;
  virtual void* stage(size_t bytes) = 0;

  // A staged block, converted to the weight's type: kRows: rows [row, row + block.dim(0));
  // kColumns: block.dim(1) rows from row, k in [column, column + block.dim(0)).
  virtual void put(const LinearWeight& weight, ConstTensor block, int64_t row, int64_t column,
                   BlockOrder order) = 0;
  // A staged block of six-bit tiles [first, first + block.dim(0)), uint8 [tiles, kTileBytes], of
  // the weight as it would be packed with its rows as they are given.
  virtual void put_tiles(const LinearWeight& weight, ConstTensor block, int64_t first) = 0;
  // A staged block of elements [first, first + count) of a buffer made by values(), which has one
  // for each row that lies in `order`.
  virtual void put(const Buffer& buffer, ConstTensor block, int64_t first, RowOrder order) = 0;
  // A staged block of all scales of a six-bit weight, fp16 [group_count(k), n]; it is changed.
  virtual void put_scales(const LinearWeight& weight, Tensor block) = 0;

  // Numbers of a fill, one for each element of [n, k] or of the buffer; of a six-bit weight for
  // each byte of its tiles. They are given as blocks would be.
  virtual void random(const LinearWeight& weight, const RandomFill& fill) = 0;
  virtual void random(const Buffer& buffer, const RandomFill& fill, RowOrder order) = 0;

  // Waits until everything is where it belongs.
  virtual void finish() = 0;
};

// region_bytes: as LoadOptions has it.
std::unique_ptr<WeightTarget> make_weight_target(Device device, size_t region_bytes);

// A weight of n rows without its values: format, codes and scales. parts: 1, or 2 of as many rows
// each. Throws Error{kConfig} if the scheme cannot have so many columns.
LinearWeight new_linear(const std::string& name, Scheme scheme, DataType dtype, int act_bits,
                        int64_t n, int64_t k, size_t parts, WeightTarget& target);

}  // namespace flexq_ft
