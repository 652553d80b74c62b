// WeightReader: bytes of a folder's weight files, and how far the reading is.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "ft/weights/model_folder.h"

namespace flexq_ft {

// Told after every block that was read; may throw to end the load.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

class WeightReader {
 public:
  // Keeps references: both outlive it. total: the bytes that are going to be read.
  WeightReader(const ModelFolder& folder, const LoadProgress& progress, int64_t total)
      : folder_(folder), progress_(progress), total_(total) {}

  const ModelFolder& folder() const { return folder_; }

  // Exactly bytes from offset, into out. Throws Error{kWeight} if the file is shorter.
  void read(const std::string& file, void* out, size_t bytes, size_t offset = 0);

 private:
  const ModelFolder& folder_;
  const LoadProgress& progress_;
  int64_t total_;
  int64_t done_ = 0;
};

}  // namespace flexq_ft
