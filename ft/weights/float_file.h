// Float files of a model folder, quantised to int8 at load.
#pragma once

#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/weights/weight_reader.h"

namespace flexq_ft {

// A float weight [K, N] as FasterTransformer stores it, cut along K into one file per rank (or in
// one file), whose output channels are wanted as rows of int8.
class FloatColumns {
 public:
  // Reads the files, each [k, n]. Keeps no reference to the reader.
  FloatColumns(WeightReader* reader, std::vector<std::string> files, int64_t k, int64_t n);

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
