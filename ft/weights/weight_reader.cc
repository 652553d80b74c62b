#include "ft/weights/weight_reader.h"

#include <algorithm>

#include "ft/weights/weight_files.h"

namespace flexq_ft {

void WeightReader::read(const std::string& file, void* out, size_t bytes, size_t offset) {
  read_weight_bytes(folder_, file, out, bytes, offset);
  done_ = std::min(total_, done_ + static_cast<int64_t>(bytes));
  if (progress_) progress_(done_, total_);
}

}  // namespace flexq_ft
