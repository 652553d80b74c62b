// FileSource: from the files of a model folder to weights in their runtime layout.
#pragma once

#include <string>
#include <vector>

#include "ft/weights/weight_reader.h"
#include "ft/weights/weight_source.h"
#include "ft/weights/weight_target.h"

namespace flexq_ft {

class FileSource : public WeightSource {
 public:
  // Keeps references: all outlive it.
  FileSource(WeightReader& reader, const LoadOptions& options, WeightTarget& target)
      : reader_(reader), folder_(reader.folder()), options_(options), target_(target) {}

  LinearWeight linear(const std::string& name, const std::vector<LinearPart>& parts,
                      const LinearForm& form) override;
  LinearWeight head(const std::string& file, int64_t begin, int64_t end) override;
  Buffer floats(const std::string& file, Shape shape, DataType dtype, FloatRole role) override;

 private:
  void load_float(const std::vector<LinearPart>& parts, const LinearWeight& out);
  void load_w8(const std::vector<LinearPart>& parts, const LinearWeight& out);
  float act_scale(const std::vector<LinearPart>& parts);
  void quantize_w8(const std::vector<LinearPart>& parts, const LinearWeight& out);
  void load_int6(const std::vector<LinearPart>& parts, const LinearWeight& out);
  void put_cut_tiles(const std::vector<LinearPart>& parts, const LinearWeight& out);
  void load_int6_scales(const std::vector<LinearPart>& parts, const LinearWeight& out);

  // Rows [first, first + rows) of a file of rows of weight.k, to rows from row.
  void put_rows(const std::string& file, DataType dtype, int64_t first, int64_t rows,
                const LinearWeight& weight, int64_t row);
  // All count elements of a file, to elements from first.
  void put_file(const std::string& file, DataType dtype, int64_t count, const Buffer& out,
                int64_t first, RowOrder order);
  // Tiles [first, first + count), which fill(block, tile, tiles) makes, tile counted from first.
  template <typename Fill>
  void put_tiles(const LinearWeight& weight, int64_t first, int64_t count, const Fill& fill);
  Buffer read_file(const std::string& file, size_t bytes);

  WeightReader& reader_;
  const ModelFolder& folder_;
  const LoadOptions& options_;
  WeightTarget& target_;
};

}  // namespace flexq_ft
