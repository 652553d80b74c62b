// Where weights come from: the files of a folder, or random numbers.
#pragma once

#include <string>
#include <vector>

#include "ft/weights/model_weights.h"
#include "ft/weights/weight_files.h"

namespace flexq_ft {

enum class FloatRole : uint8_t { kTable, kNorm, kBias };

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // The parts' rows, one after the other (gate, up), as one weight. Row-parallel biases are not
  // part of it.
  virtual LinearWeight linear(const std::string& name, const std::vector<LinearPart>& parts,
                              int act_bits) = 0;

  // Rows [begin, end) of a [vocab, hidden] table as a float weight.
  virtual LinearWeight head(const std::string& file, int64_t begin, int64_t end) = 0;

  // A file of the shape's floats, as dtype.
  virtual Buffer floats(const std::string& file, Shape shape, DataType dtype, FloatRole role) = 0;
};

}  // namespace flexq_ft
