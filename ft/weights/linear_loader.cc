#include "ft/weights/linear_loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/kernels/gemm.h"
#include "ft/weights/float_file.h"

namespace flexq_ft {

using detail::join;

namespace {

constexpr int64_t kChunkBytes = int64_t{32} << 20;

Buffer zeros(size_t bytes) {
  Buffer buffer(bytes, MemoryKind::kWeights);
  std::memset(buffer.data(), 0, bytes);
  return buffer;
}

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

DataFormat format_of(Scheme scheme, DataType dtype, int act_bits) {
  DataFormat format;
  format.scheme = scheme;
  format.act_bits = act_bits;
  switch (scheme) {
    case Scheme::kFloat:
      format.storage = dtype;
      break;
    case Scheme::kW8A16:
    case Scheme::kW8A8:
      format.layout = scheme == Scheme::kW8A8 ? Layout::kPanelPairs : Layout::kPanel;
      format.storage = DataType::kInt8;
      break;
    case Scheme::kW6Ax:
      format.layout = Layout::kFrag16x128;
      format.storage = DataType::kUint8;
      format.scale = DataType::kFp16;
      format.group_size = flexq_kernels::kGroupSize;
      break;
  }
  return format;
}

Tensor panel_of(const LinearWeight& weight) {
  return Tensor(weight.codes.data(), weight.format.storage, {weight.n, weight.k});
}

void check_depth(const LinearWeight& weight) {
  if (weight.format.scheme != Scheme::kW8A8 || weight.k <= kMaxW8A8Depth) return;
  throw Error(ErrorKind::kConfig,
              join(weight.name, " has ", weight.k, " inputs a rank, and w8a8 takes ", kMaxW8A8Depth,
                   " at the most"),
              "their int32 sum could overflow", "use --scheme w8a16, or more ranks");
}

void allocate_w8(LinearWeight* out) {
  out->codes = zeros(out->format.layout == Layout::kPanelPairs
                         ? panel_pairs_bytes(out->n, out->k)
                         : panel_bytes(out->n, out->k, DataType::kInt8));
  out->scales = Buffer(DataType::kFp32, {out->n}, MemoryKind::kWeights);
}

}  // namespace

Buffer LinearLoader::read_file(const std::string& file, size_t bytes) const {
  Buffer buffer(bytes, MemoryKind::kWorkspace);
  read_weight_bytes(folder_, file, buffer.data(), bytes);
  return buffer;
}

LinearWeight LinearLoader::load(const std::string& name, const std::vector<LinearPart>& parts,
                                int act_bits) const {
  LinearWeight out;
  out.name = name;
  out.format = format_of(options_.scheme, options_.dtype, act_bits);
  out.k = parts[0].k;
  for (const LinearPart& part : parts) out.n += part.n;
  check_depth(out);
  if (options_.scheme == Scheme::kFloat) {
    load_float(parts, &out);
  } else if (options_.scheme == Scheme::kW6Ax) {
    load_int6(parts, &out);
  } else if (folder_.scheme == Scheme::kFloat) {
    quantize_w8(parts, &out);
  } else {
    load_w8(parts, &out);
  }
  if (parts[0].has_bias && !parts[0].row_parallel) {
    out.bias = Buffer(DataType::kFp32, {out.n}, MemoryKind::kWeights);
    float* bias = static_cast<float*>(out.bias.data());
    for (const LinearPart& part : parts) {
      read_floats(folder_, part.bias_name(options_.rank), 0, part.n, DataType::kFp32, bias);
      bias += part.n;
    }
  }
  return out;
}

LinearWeight LinearLoader::load_head(const std::string& file, int64_t begin, int64_t end) const {
  LinearWeight out;
  out.name = "lm_head";
  out.format = format_of(Scheme::kFloat, options_.dtype, 16);
  out.n = end - begin;
  out.k = folder_.config.hidden_size;
  out.codes = zeros(panel_bytes(out.n, out.k, options_.dtype));
  // By the chunk: the table is the largest file, and it need not be held twice.
  const int64_t row_bytes = out.k * static_cast<int64_t>(size_of(folder_.dtype));
  const int64_t chunk = std::min(out.n, std::max<int64_t>(1, kChunkBytes / row_bytes));
  Buffer rows(static_cast<size_t>(chunk * row_bytes), MemoryKind::kWorkspace);
  for (int64_t row = 0; row < out.n; row += chunk) {
    const int64_t count = std::min(chunk, out.n - row);
    read_weight_bytes(folder_, file, rows.data(), static_cast<size_t>(count * row_bytes),
                      static_cast<size_t>((begin + row) * row_bytes));
    repack_panel(panel_of(out), ConstTensor(rows.data(), folder_.dtype, {count, out.k}), row,
                 /*row_major_nk=*/true);
  }
  return out;
}

Buffer LinearLoader::load_floats(const std::string& file, int64_t count, DataType dtype) const {
  Buffer out(dtype, {count}, MemoryKind::kWeights);
  read_floats(folder_, file, 0, count, dtype, out.data());
  return out;
}

void LinearLoader::load_float(const std::vector<LinearPart>& parts, LinearWeight* out) const {
  out->codes = zeros(panel_bytes(out->n, out->k, options_.dtype));
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const Buffer file = read_file(part.weight_name(options_.rank),
                                  static_cast<size_t>(part.k * part.n) * size_of(folder_.dtype));
    repack_panel(panel_of(*out), ConstTensor(file.data(), folder_.dtype, {part.k, part.n}), row,
                 /*row_major_nk=*/false);
    row += part.n;
  }
}

void LinearLoader::put_int8_rows(const int8_t* codes, int64_t rows, int64_t row,
                                 LinearWeight* out) const {
  const ConstTensor w(codes, DataType::kInt8, {rows, out->k});
  if (out->format.layout == Layout::kPanelPairs) {
    repack_panel_pairs(panel_of(*out), w, row);
  } else {
    repack_panel(panel_of(*out), w, row, /*row_major_nk=*/true);
  }
}

void LinearLoader::load_w8(const std::vector<LinearPart>& parts, LinearWeight* out) const {
  allocate_w8(out);
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    float* scales = static_cast<float*>(out->scales.data()) + row;
    const std::string scale_file = part.w8_scale_name(options_.rank);
    read_weight_bytes(folder_, scale_file, scales, static_cast<size_t>(part.n) * sizeof(float));
    check_scales(scale_file, scales, part.n);
    const Buffer codes =
        read_file(part.w8_name(options_.rank), static_cast<size_t>(part.n * part.k));
    put_int8_rows(static_cast<const int8_t*>(codes.data()), part.n, row, out);
    row += part.n;
  }
}

// A row-parallel weight is quantised whole and then cut, so that every rank has the scales (and
// integers) of one rank: the other ranks' files are in the same folder.
void LinearLoader::quantize_w8(const std::vector<LinearPart>& parts, LinearWeight* out) const {
  allocate_w8(out);
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    std::vector<int> ranks = {options_.rank};
    if (part.row_parallel) {
      ranks.clear();
      for (int rank = 0; rank < folder_.tp; ++rank) ranks.push_back(rank);
    }
    std::vector<std::string> names;
    for (const int rank : ranks) names.push_back(part.weight_name(rank));
    const FloatColumns columns(folder_, names, part.k, part.n);
    const int64_t first_k = part.row_parallel ? options_.rank * part.k : 0;
    const int64_t chunk = 256;
    std::vector<int8_t> codes(static_cast<size_t>(chunk * part.k));
    for (int64_t begin = 0; begin < part.n; begin += chunk) {
      const int64_t end = std::min(begin + chunk, part.n);
      columns.quantize(begin, end, first_k, part.k, codes.data(),
                       static_cast<float*>(out->scales.data()) + row + begin);
      put_int8_rows(codes.data(), end - begin, row + begin, out);
    }
    row += part.n;
  }
}

void LinearLoader::load_int6(const std::vector<LinearPart>& parts, LinearWeight* out) const {
  const auto bytes = static_cast<size_t>(flexq_kernels::packed_bytes(out->n, out->k));
  out->codes = Buffer(bytes, MemoryKind::kWeights);
  auto* packed = static_cast<uint8_t*>(out->codes.data());
  bool whole_tiles = true;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    whole_tiles = whole_tiles && parts[i].n % flexq_kernels::kTileRows == 0;
  }
  std::vector<int8_t> codes(whole_tiles ? 0 : static_cast<size_t>(out->n * out->k));
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const auto size = static_cast<size_t>(flexq_kernels::packed_bytes(part.n, part.k));
    const std::string file = part.int6_name(options_.rank);
    if (whole_tiles) {
      read_weight_bytes(folder_, file, packed + flexq_kernels::packed_bytes(row, part.k), size);
    } else {
      const Buffer tiles = read_file(file, size);
      flexq_kernels::unpack_int6(codes.data() + row * part.k,
                                 static_cast<const uint8_t*>(tiles.data()), part.n, part.k);
    }
    row += part.n;
  }
  if (!whole_tiles) flexq_kernels::pack_int6(packed, codes.data(), out->n, out->k);
  load_int6_scales(parts, out);
}

void LinearLoader::load_int6_scales(const std::vector<LinearPart>& parts, LinearWeight* out) const {
  const int64_t groups = flexq_kernels::group_count(out->k);
  out->scales = Buffer(DataType::kFp16, {groups, out->n}, MemoryKind::kWeights);
  Half* scales = static_cast<Half*>(out->scales.data());
  int64_t column = 0;
  for (const LinearPart& part : parts) {
    const std::string file = part.int6_scale_name(options_.rank);
    const Buffer rows = read_file(file, static_cast<size_t>(groups * part.n) * sizeof(Half));
    const Half* in = static_cast<const Half*>(rows.data());
    check_scales(file, in, groups * part.n);
    for (int64_t g = 0; g < groups; ++g) {
      std::copy(in + g * part.n, in + (g + 1) * part.n, scales + g * out->n + column);
    }
    column += part.n;
  }
}

}  // namespace flexq_ft
