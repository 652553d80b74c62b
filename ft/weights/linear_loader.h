// LinearLoader: from the files of a linear layer to a LinearWeight in its runtime layout.
#pragma once

#include <string>
#include <vector>

#include "ft/weights/model_weights.h"
#include "ft/weights/weight_files.h"

namespace flexq_ft {

class LinearLoader {
 public:
  // Keeps references: both outlive it.
  LinearLoader(const ModelFolder& folder, const LoadOptions& options)
      : folder_(folder), options_(options) {}

  // The parts' rows, one after the other (gate, up), as one weight. Row-parallel biases are not
  // part of it.
  LinearWeight load(const std::string& name, const std::vector<LinearPart>& parts,
                    int act_bits) const;

  // Rows [begin, end) of a [vocab, hidden] table as a float weight.
  LinearWeight load_head(const std::string& file, int64_t begin, int64_t end) const;

  // A file of `count` floats of the folder's dtype, as dtype.
  Buffer load_floats(const std::string& file, int64_t count, DataType dtype) const;

 private:
  void load_float(const std::vector<LinearPart>& parts, LinearWeight* out) const;
  void load_w8(const std::vector<LinearPart>& parts, LinearWeight* out) const;
  void quantize_w8(const std::vector<LinearPart>& parts, LinearWeight* out) const;
  void load_int6(const std::vector<LinearPart>& parts, LinearWeight* out) const;
  void load_int6_scales(const std::vector<LinearPart>& parts, LinearWeight* out) const;
  void put_int8_rows(const int8_t* codes, int64_t rows, int64_t row, LinearWeight* out) const;
  Buffer read_file(const std::string& file, size_t bytes) const;

  const ModelFolder& folder_;
  const LoadOptions& options_;
};

}  // namespace flexq_ft
