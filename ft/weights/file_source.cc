#include "ft/weights/file_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/weights/float_file.h"

namespace flexq_ft {

using detail::join;

namespace {

// Of rows that are read at a time: a table is large, and need not be held twice.
constexpr size_t kChunkBytes = size_t{32} << 20;
constexpr float kLeastStaticScale = 0x1p-100f;

template <typename T>
void check_scales(const std::string& file, const T* scales, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = to_float(scales[i]);
    if (!std::isfinite(value)) {
      throw Error(ErrorKind::kWeight, join(file, ": scale ", i, " is ", value),
                  "a scale must be a finite number", "flexq-ft convert SOURCE OUT --force");
    }
  }
}

// How many of so many items a block holds.
int64_t items_of(size_t block, size_t item, int64_t count) {
  return std::min(count, std::max<int64_t>(1, static_cast<int64_t>(block / item)));
}

int64_t tile_count(int64_t n, int64_t k) {
  return flexq_kernels::row_tiles(n) * flexq_kernels::group_count(k);
}

}  // namespace

Buffer FileSource::read_file(const std::string& file, size_t bytes) {
  Buffer buffer(bytes, MemoryKind::kWorkspace);
  reader_.read(file, buffer.data(), bytes);
  return buffer;
}

void FileSource::put_rows(const std::string& file, DataType dtype, int64_t first, int64_t rows,
                          const LinearWeight& weight, int64_t row) {
  const size_t row_bytes = static_cast<size_t>(weight.k) * size_of(dtype);
  const int64_t step = items_of(std::min(target_.block_bytes(), kChunkBytes), row_bytes, rows);
  for (int64_t done = 0; done < rows; done += step) {
    const int64_t count = std::min(step, rows - done);
    const ConstTensor block(target_.stage(static_cast<size_t>(count) * row_bytes), dtype,
                            {count, weight.k});
    reader_.read(file, const_cast<void*>(block.raw()), block.bytes(),
                 static_cast<size_t>(first + done) * row_bytes);
    target_.put(weight, block, row + done, 0, BlockOrder::kRows);
  }
}

void FileSource::put_file(const std::string& file, DataType dtype, int64_t count, const Buffer& out,
                          int64_t first, RowOrder order) {
  const size_t size = size_of(dtype);
  const int64_t step = items_of(std::min(target_.block_bytes(), kChunkBytes), size, count);
  for (int64_t done = 0; done < count; done += step) {
    const int64_t part = std::min(step, count - done);
    const Tensor block(target_.stage(static_cast<size_t>(part) * size), dtype, {part});
    reader_.read(file, block.raw(), block.bytes(), static_cast<size_t>(done) * size);
    target_.put(out, block, first + done, order);
  }
}

template <typename Fill>
void FileSource::put_tiles(const LinearWeight& weight, int64_t first, int64_t count,
                           const Fill& fill) {
  constexpr size_t kBytes = flexq_kernels::kTileBytes;
  const int64_t step = items_of(std::min(target_.block_bytes(), kChunkBytes), kBytes, count);
  for (int64_t done = 0; done < count; done += step) {
    const int64_t tiles = std::min(step, count - done);
    const Tensor block(target_.stage(static_cast<size_t>(tiles) * kBytes), DataType::kUint8,
                       {tiles, int64_t{kBytes}});
    fill(block.raw(), done, tiles);
    target_.put_tiles(weight, block, first + done);
  }
}

LinearWeight FileSource::linear(const std::string& name, const std::vector<LinearPart>& parts,
                                const LinearForm& form) {
  int64_t n = 0;
  for (const LinearPart& part : parts) n += part.n;
  LinearWeight out = new_linear(name, form.scheme, options_.dtype, form.act_bits, n, parts[0].k,
                                parts.size(), target_);
  if (form.scheme == Scheme::kFloat) {
    load_float(parts, out);
  } else if (form.scheme == Scheme::kW6Ax) {
    load_int6(parts, out);
  } else if (form.files == Scheme::kFloat) {
    quantize_w8(parts, out);
  } else {
    load_w8(parts, out);
    if (form.scheme == Scheme::kW8A8 && folder_.static_act_scales) {
      out.act_scale = act_scale(parts);
    }
  }
  if (parts[0].has_bias && !parts[0].row_parallel) {
    out.bias = target_.values(DataType::kFp32, {n});
    int64_t row = 0;
    for (const LinearPart& part : parts) {
      put_file(part.bias_name(options_.rank), folder_.dtype, part.n, out.bias, row, out.rows);
      row += part.n;
    }
  }
  return out;
}

LinearWeight FileSource::head(const std::string& file, int64_t begin, int64_t end) {
  LinearWeight out = new_linear("lm_head", Scheme::kFloat, options_.dtype, 16, end - begin,
                                folder_.config.hidden_size, 1, target_);
  put_rows(file, folder_.dtype, begin, out.n, out, 0);
  return out;
}

Buffer FileSource::floats(const std::string& file, Shape shape, DataType dtype, FloatRole) {
  Buffer out = target_.values(dtype, shape);
  put_file(file, folder_.dtype, shape.count(), out, 0, {});
  return out;
}

// A file is [K, N]: blocks of it are rows of k.
void FileSource::load_float(const std::vector<LinearPart>& parts, const LinearWeight& out) {
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const std::string file = part.weight_name(options_.rank);
    const size_t k_bytes = static_cast<size_t>(part.n) * size_of(folder_.dtype);
    const int64_t step = items_of(target_.block_bytes(), k_bytes, part.k);
    for (int64_t k = 0; k < part.k; k += step) {
      const int64_t count = std::min(step, part.k - k);
      const Tensor block(target_.stage(static_cast<size_t>(count) * k_bytes), folder_.dtype,
                         {count, part.n});
      reader_.read(file, block.raw(), block.bytes(), static_cast<size_t>(k) * k_bytes);
      target_.put(out, block, row, k, BlockOrder::kColumns);
    }
    row += part.n;
  }
}

void FileSource::load_w8(const std::vector<LinearPart>& parts, const LinearWeight& out) {
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const std::string scale_file = part.w8_scale_name(options_.rank);
    const size_t bytes = static_cast<size_t>(part.n) * sizeof(float);
    const Tensor scales(target_.stage(bytes), DataType::kFp32, {part.n});
    reader_.read(scale_file, scales.raw(), bytes);
    check_scales(scale_file, scales.data<float>(), part.n);
    target_.put(out.scales, scales, row, out.rows);
    put_rows(part.w8_name(options_.rank), DataType::kInt8, 0, part.n, out, row);
    row += part.n;
  }
}

// Parts read the same input, so they have one scale.
float FileSource::act_scale(const std::vector<LinearPart>& parts) {
  float scale = 0.0f;
  for (const LinearPart& part : parts) {
    const std::string file = part.act_scale_name(options_.rank);
    float value = 0.0f;
    reader_.read(file, &value, sizeof(value));
    if (!std::isfinite(value) || value < kLeastStaticScale || (scale > 0.0f && value != scale)) {
      throw Error(ErrorKind::kWeight, join(file, " holds ", value),
                  "a static scale is finite and not below 2^-100, and gate and up have the same",
                  "flexq-ft convert SOURCE OUT --force");
    }
    scale = value;
  }
  return scale;
}

// A row-parallel weight is quantised whole and then cut, so that every rank has the scales (and
// integers) of one rank: the other ranks' files are in the same folder.
void FileSource::quantize_w8(const std::vector<LinearPart>& parts, const LinearWeight& out) {
  constexpr int64_t kChannels = 256;  // at a time
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    std::vector<int> ranks = {options_.rank};
    if (part.row_parallel) {
      ranks.clear();
      for (int rank = 0; rank < folder_.tp; ++rank) ranks.push_back(rank);
    }
    std::vector<std::string> names;
    for (const int rank : ranks) names.push_back(part.weight_name(rank));
    const FloatColumns columns(&reader_, names, part.k, part.n);
    const int64_t first_k = part.row_parallel ? options_.rank * part.k : 0;
    std::vector<float> scales(static_cast<size_t>(part.n));
    const int64_t step = items_of(target_.block_bytes(), static_cast<size_t>(part.k), kChannels);
    for (int64_t begin = 0; begin < part.n; begin += step) {
      const int64_t rows = std::min(step, part.n - begin);
      const Tensor codes(target_.stage(static_cast<size_t>(rows * part.k)), DataType::kInt8,
                         {rows, part.k});
      columns.quantize(begin, begin + rows, first_k, part.k, codes.data<int8_t>(),
                       scales.data() + begin);
      target_.put(out, codes, row + begin, 0, BlockOrder::kRows);
    }
    const size_t bytes = scales.size() * sizeof(float);
    const Tensor staged(target_.stage(bytes), DataType::kFp32, {part.n});
    std::memcpy(staged.raw(), scales.data(), bytes);
    target_.put(out.scales, staged, row, out.rows);
    row += part.n;
  }
}

// Tiles lie one after the other, so parts of whole tiles are the weight as they are.
void FileSource::load_int6(const std::vector<LinearPart>& parts, const LinearWeight& out) {
  bool whole_tiles = true;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    whole_tiles = whole_tiles && parts[i].n % flexq_kernels::kTileRows == 0;
  }
  if (whole_tiles) {
    int64_t first = 0;
    for (const LinearPart& part : parts) {
      const std::string file = part.int6_name(options_.rank);
      put_tiles(out, first, tile_count(part.n, part.k),
                [&](void* block, int64_t tile, int64_t count) {
                  reader_.read(file, block, static_cast<size_t>(count * flexq_kernels::kTileBytes),
                               static_cast<size_t>(tile * flexq_kernels::kTileBytes));
                });
      first += tile_count(part.n, part.k);
    }
  } else {
    put_cut_tiles(parts, out);
  }
  load_int6_scales(parts, out);
}

// Parts that end within a tile are unpacked and packed as one.
void FileSource::put_cut_tiles(const std::vector<LinearPart>& parts, const LinearWeight& out) {
  std::vector<int8_t> codes(static_cast<size_t>(out.n * out.k));
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const auto size = static_cast<size_t>(flexq_kernels::packed_bytes(part.n, part.k));
    const Buffer tiles = read_file(part.int6_name(options_.rank), size);
    flexq_kernels::unpack_int6(codes.data() + row * part.k,
                               static_cast<const uint8_t*>(tiles.data()), part.n, part.k);
    row += part.n;
  }
  std::vector<uint8_t> packed(out.codes.bytes());
  flexq_kernels::pack_int6(packed.data(), codes.data(), out.n, out.k);
  put_tiles(out, 0, tile_count(out.n, out.k), [&](void* block, int64_t tile, int64_t count) {
    std::memcpy(block, packed.data() + tile * flexq_kernels::kTileBytes,
                static_cast<size_t>(count * flexq_kernels::kTileBytes));
  });
}

void FileSource::load_int6_scales(const std::vector<LinearPart>& parts, const LinearWeight& out) {
  const int64_t groups = flexq_kernels::group_count(out.k);
  const size_t bytes = static_cast<size_t>(groups * out.n) * sizeof(Half);
  const Tensor scales(target_.stage(bytes), DataType::kFp16, {groups, out.n});
  int64_t column = 0;
  for (const LinearPart& part : parts) {
    const std::string file = part.int6_scale_name(options_.rank);
    const Buffer rows = read_file(file, static_cast<size_t>(groups * part.n) * sizeof(Half));
    const Half* in = static_cast<const Half*>(rows.data());
    check_scales(file, in, groups * part.n);
    for (int64_t g = 0; g < groups; ++g) {
      std::copy(in + g * part.n, in + (g + 1) * part.n, scales.data<Half>() + g * out.n + column);
    }
    column += part.n;
  }
  target_.put_scales(out, scales);
}

}  // namespace flexq_ft
