// Which files a model folder holds, what each must be, and reading them.
#pragma once

#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/weights/model_folder.h"

namespace flexq_ft {

struct WeightFile {
  std::string name;
  FileEntry entry;
};

// What FasterTransformer keeps in one file (and a bias): a linear layer, or a half of gate_up.
struct LinearPart {
  std::string stem;  // "model.layers.3.mlp.gate_proj"
  int64_t n = 0;     // of the rank
  int64_t k = 0;     // of the rank
  bool row_parallel = false;
  bool has_bias = false;

  std::string weight_name(int rank) const;      // FT's float file
  std::string int6_name(int rank) const;        // ours
  std::string int6_scale_name(int rank) const;  //
  std::string w8_name(int rank) const;          //
  std::string w8_scale_name(int rank) const;    //
  std::string act_scale_name(int rank) const;   //
  std::string bias_name(int rank) const;        // row-parallel biases are the layer's
};

struct LayerParts {
  LinearPart qkv;
  LinearPart o;
  std::vector<LinearPart> up;  // gate and up, or fc1
  LinearPart down;
};

LayerParts layer_parts(const ModelFolder& folder, int64_t layer, int rank);

// A quantised head's rows of the rank, which are equal shares of the vocabulary, the last ranks'
// smaller. A float head is one file for all ranks.
LinearPart head_part(const ModelFolder& folder, int rank);
std::array<int64_t, 2> head_rows(const ModelFolder& folder, int rank);

std::string embedding_name(const ModelFolder& folder);  // both of FT's spellings are known
std::string norm_name(int64_t layer, const char* norm, const char* what);

// Every file that a rank reads.
std::vector<WeightFile> rank_files(const ModelFolder& folder, int rank);

// The float files of a rank's row-parallel weights: to quantise one, every rank reads those of all.
std::vector<WeightFile> row_parallel_files(const ModelFolder& folder, int rank);

// Throws Error{kWeight} that lists all missing, short and long files at once.
void check_weight_files(const ModelFolder& folder, const std::vector<WeightFile>& files);

// FT's own mode-2 files mean something else than ours: refused by name.
void refuse_ft_int8_files(const ModelFolder& folder);

bool file_exists(const ModelFolder& folder, const std::string& name);

// Exactly bytes from offset, into out. Throws Error{kWeight} if the file is shorter.
void read_weight_bytes(const ModelFolder& folder, const std::string& name, void* out, size_t bytes,
                       size_t offset = 0);

}  // namespace flexq_ft
