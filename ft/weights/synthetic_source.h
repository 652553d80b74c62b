// SyntheticSource: random weights in a model's shapes, for speed and memory without a checkpoint.
// They depend on their names and the rank alone, are the same on every device, and keep every value
// finite through any number of layers: a linear's outputs have the variance of its inputs.
#pragma once

#include <string>
#include <vector>

#include "ft/weights/weight_source.h"
#include "ft/weights/weight_target.h"

namespace flexq_ft {

class SyntheticSource : public WeightSource {
 public:
  // Keeps references: all outlive it.
  SyntheticSource(const ModelFolder& folder, const LoadOptions& options, WeightTarget& target);

  LinearWeight linear(const std::string& name, const std::vector<LinearPart>& parts,
                      const LinearForm& form) override;
  LinearWeight head(const std::string& file, int64_t begin, int64_t end) override;
  Buffer floats(const std::string& file, Shape shape, DataType dtype, FloatRole role) override;

 private:
  void fill_int6(const LinearWeight& weight, const std::string& own, float spread);
  Buffer values(const std::string& name, Shape shape, DataType dtype, float center, float spread,
                RowOrder order = {});

  const ModelFolder& folder_;
  const LoadOptions& options_;
  WeightTarget& target_;
};

// A folder that exists nowhere: the model of an INI as config.ini has it (configs/models/*.ini),
// cut for tp ranks, without files; its own int8_mode, weight_data_type and tensor_para_size are
// passed over. Throws Error{kConfig} or Error{kWeight} if there is no such model, or no such cut.
ModelFolder shape_folder(const std::string& ini_path, Scheme scheme, DataType dtype, int tp);

}  // namespace flexq_ft
