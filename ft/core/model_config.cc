#include "ft/core/model_config.h"

#include <cmath>

#include "ft/core/check.h"
#include "ft/core/error.h"

namespace flexq_ft {

namespace {

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  throw Error(ErrorKind::kWeight, detail::join(args...));
}

void require_positive(const char* name, double value) {
  if (!std::isfinite(value) || value <= 0) fail(name, " is ", value, ", which is not above 0");
}

void validate_rope(const ModelConfig& config) {
  if (!config.rope) return;
  const RopeConfig& rope = *config.rope;
  if (config.head_dim % 2 != 0) fail("head_dim is ", config.head_dim, ", odd: rope wants pairs");
  require_positive("rope theta", rope.theta);
  if (rope.type == RopeConfig::Type::kDefault) return;
  require_positive("rope factor", rope.factor);
  if (rope.type == RopeConfig::Type::kLinear) return;
  require_positive("rope low_freq_factor", rope.low_freq_factor);
  require_positive("rope high_freq_factor", rope.high_freq_factor);
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fail("rope high_freq_factor ", rope.high_freq_factor, " is not above low_freq_factor ",
         rope.low_freq_factor);
  }
  if (rope.original_max_positions < 1) {
    fail("rope original_max_positions is ", rope.original_max_positions);
  }
}

void validate_tokens(const ModelConfig& config) {
  const auto check = [&](const char* name, int64_t id) {
    if (id < 0 || id >= config.vocab_size) {
      fail(name, " is ", id, ", outside the vocabulary of ", config.vocab_size);
    }
  };
  check("bos_id", config.bos_id);
  for (const int64_t id : config.eos_ids) check("an eos id", id);
}

void validate_architecture(const ModelConfig& config) {
  if (config.architecture == Architecture::kLlama) {
    if (config.norm != NormType::kRms || config.activation != Activation::kSilu ||
        !config.gated_ffn || !config.rope) {
      fail("a llama model has RMS norms, a gated SiLU feed-forward and rope; these are ", config);
    }
    return;
  }
  if (config.norm != NormType::kLayer || config.gated_ffn || config.rope ||
      config.activation == Activation::kSilu) {
    fail("an opt model has layer norms, relu or gelu, no gate and no rope; these are ", config);
  }
  if (config.num_kv_heads != config.num_heads) {
    fail("an opt model has as many KV heads as heads: ", config.num_kv_heads, " and ",
         config.num_heads);
  }
}

}  // namespace

const std::vector<ConfigInteger>& config_integers() {
  static const std::vector<ConfigInteger> all = {
      {"vocab_size", &ModelConfig::vocab_size, 1, int64_t{1} << 24},
      {"hidden_size", &ModelConfig::hidden_size, 1, int64_t{1} << 20},
      {"num_layers", &ModelConfig::num_layers, 1, 1024},
      {"num_heads", &ModelConfig::num_heads, 1, 4096},
      {"num_kv_heads", &ModelConfig::num_kv_heads, 1, 4096},
      {"head_dim", &ModelConfig::head_dim, 1, 1024},
      {"inter_size", &ModelConfig::inter_size, 1, int64_t{1} << 22},
      {"max_positions", &ModelConfig::max_positions, 1, int64_t{1} << 24},
  };
  return all;
}

void ModelConfig::validate() const {
  for (const ConfigInteger& integer : config_integers()) {
    const int64_t value = this->*integer.field;
    if (value < integer.min || value > integer.max) {
      fail(integer.name, " is ", value, ", allowed are ", integer.min, " to ", integer.max);
    }
  }
  if (num_heads % num_kv_heads != 0) {
    fail("num_heads ", num_heads, " is not a multiple of num_kv_heads ", num_kv_heads);
  }
  if (!std::isfinite(norm_eps) || norm_eps < 0 || norm_eps >= 1) {
    fail("norm_eps is ", norm_eps, ", allowed are 0 to 1");
  }
  if (sliding_window < 0) fail("sliding_window is ", sliding_window);
  validate_rope(*this);
  validate_tokens(*this);
  validate_architecture(*this);
}

const char* to_string(Architecture value) {
  return value == Architecture::kLlama ? "llama" : "opt";
}

const char* to_string(NormType value) { return value == NormType::kRms ? "rms" : "layer"; }

const char* to_string(Activation value) {
  switch (value) {
    case Activation::kSilu:
      return "silu";
    case Activation::kRelu:
      return "relu";
    case Activation::kGelu:
      return "gelu";
  }
  return "?";
}

const char* to_string(RopeConfig::Type value) {
  switch (value) {
    case RopeConfig::Type::kDefault:
      return "default";
    case RopeConfig::Type::kLinear:
      return "linear";
    case RopeConfig::Type::kLlama3:
      return "llama3";
  }
  return "?";
}

std::ostream& operator<<(std::ostream& out, const ModelConfig& config) {
  out << "ModelConfig{name=" << config.name << ", architecture=" << to_string(config.architecture);
  for (const ConfigInteger& integer : config_integers()) {
    out << ", " << integer.name << "=" << config.*integer.field;
  }
  out << ", norm=" << to_string(config.norm) << ", norm_eps=" << config.norm_eps
      << ", activation=" << to_string(config.activation) << ", gated_ffn=" << config.gated_ffn
      << ", rope=" << (config.rope ? to_string(config.rope->type) : "none")
      << ", tie_word_embeddings=" << config.tie_word_embeddings
      << ", sliding_window=" << config.sliding_window << "}";
  return out;
}

}  // namespace flexq_ft
