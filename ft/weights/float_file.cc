#include "ft/weights/float_file.h"

#include <algorithm>
#include <utility>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/quantize.h"
#include "ft/core/check.h"

namespace flexq_ft {

using detail::join;

FloatColumns::FloatColumns(WeightReader* reader, std::vector<std::string> files, int64_t k,
                           int64_t n)
    : files_(std::move(files)), dtype_(reader->folder().dtype), k_(k), n_(n) {
  for (const std::string& file : files_) {
    data_.emplace_back(static_cast<size_t>(k * n) * size_of(dtype_), MemoryKind::kWorkspace);
    reader->read(file, data_.back().data(), data_.back().bytes());
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
