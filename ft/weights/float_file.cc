#include "ft/weights/float_file.h"

#include <algorithm>
#include <utility>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/quantize.h"
#include "ft/core/check.h"
#include "ft/weights/weight_files.h"

namespace flexq_ft {

using detail::join;

namespace {

constexpr int64_t kChunk = int64_t{1} << 22;  // values converted at a time

void convert(void* out, DataType out_type, const void* in, DataType in_type, int64_t count) {
  dispatch_float(in_type, [&](auto in_tag) {
    using In = decltype(in_tag);
    dispatch_float(out_type, [&](auto out_tag) {
      using Out = decltype(out_tag);
      const In* from = static_cast<const In*>(in);
      Out* to = static_cast<Out*>(out);
      flexq_kernels::parallel_ranges(count, count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = from_float<Out>(to_float(from[i]));
      });
    });
  });
}

}  // namespace

void read_floats(const ModelFolder& folder, const std::string& file, int64_t first, int64_t count,
                 DataType dtype, void* out) {
  const size_t from_size = size_of(folder.dtype);
  const auto offset = static_cast<size_t>(first) * from_size;
  if (dtype == folder.dtype) {
    read_weight_bytes(folder, file, out, static_cast<size_t>(count) * from_size, offset);
    return;
  }
  const int64_t chunk = std::min(count, kChunk);
  Buffer values(static_cast<size_t>(chunk) * from_size, MemoryKind::kWorkspace);
  for (int64_t done = 0; done < count; done += chunk) {
    const int64_t part = std::min(chunk, count - done);
    read_weight_bytes(folder, file, values.data(), static_cast<size_t>(part) * from_size,
                      offset + static_cast<size_t>(done) * from_size);
    convert(static_cast<char*>(out) + static_cast<size_t>(done) * size_of(dtype), dtype,
            values.data(), folder.dtype, part);
  }
}

FloatColumns::FloatColumns(const ModelFolder& folder, std::vector<std::string> files, int64_t k,
                           int64_t n)
    : files_(std::move(files)), dtype_(folder.dtype), k_(k), n_(n) {
  for (const std::string& file : files_) {
    data_.emplace_back(static_cast<size_t>(k * n) * size_of(dtype_), MemoryKind::kWorkspace);
    read_weight_bytes(folder, file, data_.back().data(), data_.back().bytes());
  }
}

void FloatColumns::quantize(int64_t begin, int64_t end, int64_t first_k, int64_t kept,
                            int8_t* codes, float* scales) const {
  const int64_t rows = end - begin;
  const int64_t all_k = k_ * static_cast<int64_t>(data_.size());
  std::vector<float> w(static_cast<size_t>(rows * all_k));
  dispatch_float(dtype_, [&](auto tag) {
    using T = decltype(tag);
    flexq_kernels::parallel_ranges(all_k, rows * all_k, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const T* in =
            static_cast<const T*>(data_[static_cast<size_t>(k / k_)].data()) + k % k_ * n_ + begin;
        for (int64_t r = 0; r < rows; ++r) w[static_cast<size_t>(r * all_k + k)] = to_float(in[r]);
      }
    });
  });
  std::vector<int8_t> all(static_cast<size_t>(rows * all_k));
  if (const auto fault =
          flexq_kernels::quantize_weight_int8(all.data(), scales, w.data(), rows, all_k)) {
    throw Error(
        ErrorKind::kWeight,
        join(files_[static_cast<size_t>(fault.column / k_)], ": the weight at [", fault.column % k_,
             ", ", begin + fault.row, "] is ", fault.value, " and cannot be quantised"),
        "weights must be finite", "check the source checkpoint, and convert it again");
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* row = all.data() + r * all_k + first_k;
    std::copy(row, row + kept, codes + r * kept);
  }
}

}  // namespace flexq_ft
