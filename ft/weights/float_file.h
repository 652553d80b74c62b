// Float files of a model folder: converted as they are read, or quantised to int8.
#pragma once

#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/weights/model_folder.h"

namespace flexq_ft {

// out [count] of dtype <- values [first, first + count) of a file of the folder's dtype.
void read_floats(const ModelFolder& folder, const std::string& file, int64_t first, int64_t count,
                 DataType dtype, void* out);

// A float weight [K, N] as FasterTransformer stores it, cut along K into one file per rank (or in
// one file), whose output channels are wanted as rows of int8.
class FloatColumns {
 public:
  // Reads the files, each [k, n]. Keeps no reference to the folder.
  FloatColumns(const ModelFolder& folder, std::vector<std::string> files, int64_t k, int64_t n);

  // Quantises output channels [begin, end) over all of K, with one scale each, and keeps k in
  // [first_k, first_k + kept) of them: codes [end - begin, kept], scales [end - begin]. Throws
  // Error{kWeight} naming file and place of a value that is not finite.
  void quantize(int64_t begin, int64_t end, int64_t first_k, int64_t kept, int8_t* codes,
                float* scales) const;

 private:
  std::vector<std::string> files_;
  std::vector<Buffer> data_;
  DataType dtype_;
  int64_t k_;  // of one file
  int64_t n_;
};

}  // namespace flexq_ft
