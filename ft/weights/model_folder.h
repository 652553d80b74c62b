// A model folder (`<tp>-gpu`): its config.ini and manifest.json, read, compared and validated.
//
// The manifest wins over the INI; when both exist they must agree. Without a manifest (a checkpoint
// written by FasterTransformer's own scripts) the INI decides, and every file's exact size is
// checked when it is read. Faults of the folder are Error{kWeight}; a path without a folder is
// Error{kConfig}.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ft/core/data_format.h"
#include "ft/core/model_config.h"
#include "ft/weights/policy.h"

namespace flexq_ft {

// What one rank holds of each split axis, half-open; one entry per rank.
struct ShardRanges {
  std::vector<std::array<int64_t, 2>> heads;
  std::vector<std::array<int64_t, 2>> kv_heads;  // replicated heads appear in several ranges
  std::vector<std::array<int64_t, 2>> inter;     // gate/up/fc1 rows and down/fc2 columns
};

struct FileEntry {
  std::vector<int64_t> shape;
  std::string dtype;   // fp32 fp16 bf16 int8 int6
  std::string layout;  // row_major | frag16x128
  uint64_t bytes = 0;
  std::string xxh3_128;  // 32 hexadecimal digits; empty without a manifest
};

struct ModelFolder {
  std::string path;
  bool has_manifest = false;
  ModelConfig config;
  Scheme scheme = Scheme::kFloat;
  DataType dtype = DataType::kFp16;  // of the float files
  Policy policy;                     // w6ax only
  bool static_act_scales = false;    // w8a8 only: each linear has a file with its inputs' scale
  HeadFormat lm_head = HeadFormat::kFloat;
  int tp = 1;
  ShardRanges shards;
  // File stems ("attention.dense") whose groups restart at the shards' edges: w6ax, tp > 1.
  std::vector<std::string> cut_groups;
  std::map<std::string, FileEntry> files;  // empty without a manifest
};

ModelFolder open_model_folder(const std::string& path);

// FasterTransformer's even split. Fewer KV heads than ranks are replicated. Throws Error{kWeight}
// if heads, KV heads or inter_size do not divide.
ShardRanges even_shards(const ModelConfig& config, int tp);

}  // namespace flexq_ft
