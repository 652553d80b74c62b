// Where weights come from: the files of a folder, or random numbers.
#pragma once

#include <string>
#include <vector>

#include "ft/weights/model_weights.h"
#include "ft/weights/weight_files.h"

namespace flexq_ft {

enum class FloatRole : uint8_t { kTable, kNorm, kBias };

// What a linear becomes, and what its files hold: the same, or floats that become w8.
struct LinearForm {
  Scheme scheme = Scheme::kFloat;
  Scheme files = Scheme::kFloat;
  int act_bits = 16;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // The parts' rows, one after the other (gate, up), as one weight. Row-parallel biases are not
  // part of it.
  virtual LinearWeight linear(const std::string& name, const std::vector<LinearPart>& parts,
                              const LinearForm& form) = 0;

  // Rows [begin, end) of a [vocab, hidden] table as the weight of a float head.
  virtual LinearWeight head(const std::string& file, int64_t begin, int64_t end) = 0;

  // A file of the shape's floats, as dtype.
  virtual Buffer floats(const std::string& file, Shape shape, DataType dtype, FloatRole role) = 0;
};

}  // namespace flexq_ft
