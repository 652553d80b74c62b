// ModelConfig: the numbers of one decoder-only model, as manifest.json's "model" object holds them.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "ft/core/data_format.h"
#include "ft/core/dtype.h"

namespace flexq_ft {

enum class Architecture : uint8_t { kLlama, kOpt };
enum class NormType : uint8_t { kRms, kLayer };
enum class Activation : uint8_t { kSilu, kRelu, kGelu };

// Rotary embedding, neox half rotation. Absent (nullopt) for learned positions.
struct RopeConfig {
  enum class Type : uint8_t { kDefault, kLinear, kLlama3 };
  double theta = 10000.0;
  Type type = Type::kDefault;
  double factor = 1.0;                    // linear and llama3
  double low_freq_factor = 1.0;           // llama3
  double high_freq_factor = 4.0;          // llama3
  int64_t original_max_positions = 8192;  // llama3
};

struct ModelConfig {
  std::string name;
  Architecture architecture = Architecture::kLlama;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t inter_size = 0;
  int64_t max_positions = 0;
  NormType norm = NormType::kRms;
  double norm_eps = 1e-5;
  Activation activation = Activation::kSilu;
  bool gated_ffn = true;
  std::optional<RopeConfig> rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool dense_bias = false;     // o_proj / out_proj
  bool ffn_bias = false;       // gate, up and down, or fc1 and fc2
  int64_t sliding_window = 0;  // 0: none
  int64_t bos_id = 0;
  std::vector<int64_t> eos_ids;

  // Throws Error{kWeight} naming the first field out of its range, or two that contradict.
  void validate() const;
};

std::ostream& operator<<(std::ostream& out, const ModelConfig& config);

// Names as files spell them: "llama", "rms", "silu", "llama3", …
const char* to_string(Architecture value);
const char* to_string(NormType value);
const char* to_string(Activation value);
const char* to_string(RopeConfig::Type value);

// Integers of a config that have a plain range, for validate() and for readers that show where a
// wrong one stands. The bounds keep every product of sizes far from the end of int64_t.
struct ConfigInteger {
  const char* name;
  int64_t ModelConfig::* field;
  int64_t min;
  int64_t max;
};
const std::vector<ConfigInteger>& config_integers();

}  // namespace flexq_ft
