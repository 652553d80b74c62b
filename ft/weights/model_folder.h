// A model folder (`<tp>-gpu`): its config.ini and manifest.json, read, compared and validated.
//
// The manifest wins over the INI; when both exist they must agree. Without a manifest (a checkpoint
// written by FasterTransformer's own scripts) the INI decides, and every file's exact size is
// checked when it is read. All faults in here are Error{kWeight}.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ft/core/data_format.h"
#include "ft/core/model_config.h"

namespace flexq_ft {

// Which activations are quantised to how many bits: rule after rule, the last match wins.
struct Policy {
  struct Rule {
    std::vector<int64_t> layers;  // empty: all
    std::string linear;           // qkv | o | gate_up | down | fc1 | fc2
    int act_bits = 6;
  };
  std::string name = "flexq";
  int default_bits = 6;
  std::vector<Rule> rules = {{{}, "down", 8}, {{}, "fc2", 8}};

  int act_bits(int64_t layer, const std::string& linear) const;
};

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
  std::string xxh3_128;
};

struct ModelFolder {
  std::string path;
  bool has_manifest = false;
  ModelConfig config;
  Scheme scheme = Scheme::kFloat;
  DataType dtype = DataType::kFp16;  // of the float files
  Policy policy;                     // w6ax only
  int tp = 1;
  ShardRanges shards;
  std::map<std::string, FileEntry> files;  // empty without a manifest
};

ModelFolder open_model_folder(const std::string& path);

}  // namespace flexq_ft
