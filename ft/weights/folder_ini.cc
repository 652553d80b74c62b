#include "ft/weights/folder_ini.h"

#include <cstdio>

#include "ft/core/check.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

enum Owner { kBoth, kLlamaOnly, kOptOnly };

struct IniKey {
  const char* name;
  Owner owner;
  bool required;  // where there is no manifest
  void (*read)(const IniSection& section, const char* key, ModelFolder* folder);
  std::string (*show)(const ModelFolder& folder);
};

std::string show_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

// With the bounds of a manifest, so that no product of two sizes can overflow.
int64_t read_integer(const IniSection& section, const char* key, int64_t ModelConfig::* field) {
  const int64_t value = section.get_int(key);
  for (const ConfigInteger& integer : config_integers()) {
    if (integer.field == field && (value < integer.min || value > integer.max)) {
      section.fail(key, join("is ", value, ", allowed are ", integer.min, " to ", integer.max));
    }
  }
  return value;
}

template <int64_t ModelConfig::* kField>
constexpr IniKey integer(const char* name, Owner owner, bool required) {
  return {name, owner, required,
          [](const IniSection& section, const char* key, ModelFolder* folder) {
            folder->config.*kField = read_integer(section, key, kField);
          },
          [](const ModelFolder& folder) { return std::to_string(folder.config.*kField); }};
}

template <bool ModelConfig::* kField>
constexpr IniKey boolean(const char* name) {
  return {
      name, kBoth, false,
      [](const IniSection& section, const char* key, ModelFolder* folder) {
        folder->config.*kField = section.get_bool(key);
      },
      [](const ModelFolder& folder) -> std::string { return folder.config.*kField ? "1" : "0"; }};
}

template <double RopeConfig::* kField>
constexpr IniKey rope_number(const char* name) {
  return {name, kLlamaOnly, false,
          [](const IniSection& section, const char* key, ModelFolder* folder) {
            (*folder->config.rope).*kField = section.get_float(key);
          },
          [](const ModelFolder& folder) {
            return folder.config.rope ? show_number((*folder.config.rope).*kField) : "none";
          }};
}

void read_rope_type(const IniSection& section, const char* key, ModelFolder* folder) {
  const std::string text = to_lower(section.get_string(key));
  for (const auto type :
       {RopeConfig::Type::kDefault, RopeConfig::Type::kLinear, RopeConfig::Type::kLlama3}) {
    if (text == to_string(type)) {
      folder->config.rope->type = type;
      return;
    }
  }
  section.fail(key, join("is '", text, "', allowed are default, linear, llama3"));
}

// FT's Llama-2 script writes this factor without a type, and means linear scaling.
void read_rope_factor(const IniSection& section, const char* key, ModelFolder* folder) {
  RopeConfig& rope = *folder->config.rope;
  rope.factor = section.get_float(key);
  if (!section.has("rope_scaling_type") && !folder->has_manifest && rope.factor != 1.0) {
    rope.type = RopeConfig::Type::kLinear;
  }
}

void read_rope_original(const IniSection& section, const char* key, ModelFolder* folder) {
  folder->config.rope->original_max_positions = section.get_int(key);
}

void read_end_id(const IniSection& section, const char* key, ModelFolder* folder) {
  const int64_t id = section.get_int(key);
  folder->config.eos_ids.clear();
  if (id != -1) folder->config.eos_ids.push_back(id);
}

std::string show_ids(const std::vector<int64_t>& ids) {
  std::string out;
  for (const int64_t id : ids) out += join(out.empty() ? "" : ",", id);
  return out;
}

void read_end_ids(const IniSection& section, const char* key, ModelFolder* folder) {
  const std::string text = section.get_string(key) + ",";
  std::vector<int64_t> ids;
  for (size_t begin = 0; text.size() > 1 && begin < text.size();) {
    const size_t comma = text.find(',', begin);
    std::string item = text.substr(begin, comma - begin);
    item.erase(0, item.find_first_not_of(" \t"));
    item.erase(item.find_last_not_of(" \t") + 1);
    int64_t id = 0;
    if (!parse_integer(item, &id)) section.fail(key, join("holds '", item, "', not an id"));
    ids.push_back(id);
    begin = comma + 1;
  }
  const int64_t first = section.get_int("end_id", -1);
  if (section.has("end_id") && (ids.empty() ? first != -1 : ids[0] != first)) {
    section.fail(key, join("is '", show_ids(ids), "', which does not begin with end_id ", first));
  }
  folder->config.eos_ids = std::move(ids);
}

// FT looks for the name anywhere in the text.
void read_dtype(const IniSection& section, const char* key, ModelFolder* folder) {
  const std::string text = to_lower(section.get_string(key));
  for (const DataType dtype : {DataType::kFp32, DataType::kFp16, DataType::kBf16}) {
    if (text.find(to_string(dtype)) != std::string::npos) {
      folder->dtype = dtype;
      return;
    }
  }
  section.fail(key, join("is '", text, "', allowed are fp32, fp16, bf16"));
}

void read_scheme(const IniSection& section, const char* key, ModelFolder* folder) {
  const int64_t mode = section.get_int(key);
  const bool known =
      mode >= 0 && mode <= 5 && scheme_of_int8_mode(static_cast<int>(mode), &folder->scheme);
  if (!known) section.fail(key, join("is ", mode, ", allowed are 0, 1, 2 and 5"));
}

void read_tp(const IniSection& section, const char* key, ModelFolder* folder) {
  const int64_t tp = section.get_int(key);
  if (tp < 1 || tp > 1024) section.fail(key, join("is ", tp, ", allowed are 1 to 1024"));
  folder->tp = static_cast<int>(tp);
}

int64_t group_size(const ModelFolder& folder) { return folder.scheme == Scheme::kW6Ax ? 128 : 0; }

void read_group_size(const IniSection& section, const char* key, ModelFolder* folder) {
  if (section.get_int(key) != group_size(*folder)) {
    section.fail(key, join("is ", section.get_int(key), ", and ", to_string(folder->scheme),
                           " has ", group_size(*folder)));
  }
}

void read_activation(const IniSection& section, const char* key, ModelFolder* folder) {
  const std::string text = to_lower(section.get_string(key));
  if (text != "relu" && text != "gelu") {
    section.fail(key, join("is '", text, "', supported are Relu and Gelu"));
  }
  folder->config.activation = text == "relu" ? Activation::kRelu : Activation::kGelu;
}

void read_norm_type(const IniSection& section, const char* key, ModelFolder*) {
  const std::string text = to_lower(section.get_string(key));
  if (text != "pre_layernorm") {
    section.fail(key, join("is '", text, "': only pre-LN models are supported, and post-LN ones ",
                           "(OPT-350m) are not"));
  }
}

void read_final_norm(const IniSection& section, const char* key, ModelFolder*) {
  if (!section.get_bool(key))
    section.fail(key, "is 0: models without a final norm are not supported");
}

// Read in this order: a later key may refer to an earlier one.
constexpr IniKey kKeys[] = {
    {"model_name", kBoth, false,
     [](const IniSection& section, const char* key, ModelFolder* folder) {
       folder->config.name = section.get_string(key);
     },
     [](const ModelFolder& folder) { return folder.config.name; }},
    integer<&ModelConfig::num_heads>("head_num", kBoth, true),
    integer<&ModelConfig::num_kv_heads>("kv_head_num", kBoth, false),
    integer<&ModelConfig::head_dim>("size_per_head", kBoth, true),
    integer<&ModelConfig::head_dim>("rotary_embedding", kLlamaOnly, false),
    integer<&ModelConfig::inter_size>("inter_size", kBoth, false),
    integer<&ModelConfig::num_layers>("num_layer", kBoth, false),
    integer<&ModelConfig::num_layers>("decoder_layers", kOptOnly, false),
    integer<&ModelConfig::vocab_size>("vocab_size", kBoth, true),
    integer<&ModelConfig::max_positions>("max_pos_seq_len", kBoth, false),
    integer<&ModelConfig::sliding_window>("sliding_window", kBoth, false),
    integer<&ModelConfig::bos_id>("start_id", kBoth, true),
    {"end_id", kBoth, true, read_end_id,
     [](const ModelFolder& folder) {
       return std::to_string(folder.config.eos_ids.empty() ? -1 : folder.config.eos_ids[0]);
     }},
    {"end_ids", kBoth, false, read_end_ids,
     [](const ModelFolder& folder) { return show_ids(folder.config.eos_ids); }},
    {"layernorm_eps", kBoth, false,
     [](const IniSection& section, const char* key, ModelFolder* folder) {
       folder->config.norm_eps = section.get_float(key);
     },
     [](const ModelFolder& folder) { return show_number(folder.config.norm_eps); }},
    {"weight_data_type", kBoth, true, read_dtype,
     [](const ModelFolder& folder) -> std::string { return to_string(folder.dtype); }},
    {"int8_mode", kBoth, false, read_scheme,
     [](const ModelFolder& folder) { return std::to_string(int8_mode(folder.scheme)); }},
    {"group_size", kBoth, false, read_group_size,
     [](const ModelFolder& folder) { return std::to_string(group_size(folder)); }},
    {"tensor_para_size", kBoth, false, read_tp,
     [](const ModelFolder& folder) { return std::to_string(folder.tp); }},
    boolean<&ModelConfig::tie_word_embeddings>("tie_word_embeddings"),
    boolean<&ModelConfig::qkv_bias>("qkv_bias"),
    boolean<&ModelConfig::dense_bias>("dense_bias"),
    boolean<&ModelConfig::ffn_bias>("ffn_bias"),
    rope_number<&RopeConfig::theta>("rope_base"),
    rope_number<&RopeConfig::theta>("rope_theta"),
    {"rope_scaling_type", kLlamaOnly, false, read_rope_type,
     [](const ModelFolder& folder) -> std::string { return to_string(folder.config.rope->type); }},
    {"rope_scaling_factor", kLlamaOnly, false, read_rope_factor,
     [](const ModelFolder& folder) { return show_number(folder.config.rope->factor); }},
    rope_number<&RopeConfig::low_freq_factor>("rope_scaling_low_freq_factor"),
    rope_number<&RopeConfig::high_freq_factor>("rope_scaling_high_freq_factor"),
    {"rope_scaling_original_max_position_embeddings", kLlamaOnly, false, read_rope_original,
     [](const ModelFolder& folder) {
       return std::to_string(folder.config.rope->original_max_positions);
     }},
    {"activation_type", kOptOnly, false, read_activation,
     [](const ModelFolder& folder) -> std::string { return to_string(folder.config.activation); }},
    {"layernorm_type", kOptOnly, false, read_norm_type,
     [](const ModelFolder&) -> std::string { return "pre_layernorm"; }},
    {"has_post_decoder_layernorm", kOptOnly, false, read_final_norm,
     [](const ModelFolder&) -> std::string { return "1"; }},
};

bool belongs(const IniKey& key, Architecture architecture) {
  if (key.owner == kBoth) return true;
  return (key.owner == kLlamaOnly) == (architecture == Architecture::kLlama);
}

// [llama] or [gpt], and nothing else.
const IniSection& model_section(const IniFile& ini, Architecture* architecture) {
  const IniSection* llama = ini.find("llama");
  const IniSection* gpt = ini.find("gpt");
  if ((llama == nullptr) == (gpt == nullptr)) {
    throw Error(ErrorKind::kWeight,
                join(ini.name(), llama == nullptr ? " has neither" : " has both",
                     " a section [llama] and a section [gpt]; exactly one names the model"));
  }
  *architecture = llama != nullptr ? Architecture::kLlama : Architecture::kOpt;
  for (const IniSection& section : ini.sections()) {
    if (section.name() != "llama" && section.name() != "gpt") {
      throw Error(ErrorKind::kWeight, join(ini.name(), ": unknown section [", section.name(), "]"));
    }
  }
  return llama != nullptr ? *llama : *gpt;
}

void read_keys(const IniSection& section, bool complete, ModelFolder* folder) {
  for (const IniKey& key : kKeys) {
    if (!belongs(key, folder->config.architecture)) continue;
    section.ignore(key.name);
    if (section.has(key.name) || (complete && key.required)) {
      key.read(section, key.name, folder);
    }
  }
  section.ignore("int8");  // FT's OPT script writes it; nothing reads it
  section.refuse_unread();
}

// What the key alone says, put into the rest of the folder.
std::string show_alone(const IniKey& key, const IniSection& section, const ModelFolder& folder) {
  ModelFolder alone;
  alone.has_manifest = folder.has_manifest;
  alone.config = folder.config;
  alone.scheme = folder.scheme;
  key.read(section, key.name, &alone);
  return key.show(alone);
}

// The first key that says something else than the folder.
const IniKey* find_difference(const IniSection& section, const ModelFolder& folder) {
  for (const IniKey& key : kKeys) {
    if (!belongs(key, folder.config.architecture) || !section.has(key.name)) continue;
    // FT's script writes rope_base = 10000 for every model, and nothing of FT reads it.
    if (std::string(key.name) == "rope_base" && section.has("rope_theta")) continue;
    if (show_alone(key, section, folder) != key.show(folder)) return &key;
  }
  return nullptr;
}

void set_llama_defaults(ModelConfig* config) {
  config->architecture = Architecture::kLlama;
  config->rope = RopeConfig{};
  config->max_positions = 2048;
}

// What FT's runtime takes where the INI is silent: GPT-2's script writes neither eps nor
// activation.
void set_gpt_defaults(ModelConfig* config) {
  config->architecture = Architecture::kOpt;
  config->norm = NormType::kLayer;
  config->norm_eps = 1e-6;
  config->activation = Activation::kGelu;
  config->gated_ffn = false;
  config->qkv_bias = config->dense_bias = config->ffn_bias = true;
}

void require(const IniSection& section, std::initializer_list<const char*> any_of) {
  for (const char* key : any_of) {
    if (section.has(key)) return;
  }
  section.get_string(*any_of.begin());  // throws
}

}  // namespace

ModelFolder read_folder_ini(const IniFile& ini) {
  ModelFolder folder;
  folder.tp = 0;
  ModelConfig& config = folder.config;
  Architecture architecture;
  const IniSection& section = model_section(ini, &architecture);
  const bool llama = architecture == Architecture::kLlama;
  if (llama) {
    set_llama_defaults(&config);
    require(section, {"num_layer"});
    require(section, {"inter_size"});
    require(section, {"layernorm_eps"});
  } else {
    set_gpt_defaults(&config);
    require(section, {"num_layer", "decoder_layers"});
    require(section, {"max_pos_seq_len"});
  }
  config.name = to_string(architecture);
  read_keys(section, true, &folder);
  if (const IniKey* key = find_difference(section, folder)) {
    section.fail(key->name, "contradicts another key that says " + key->show(folder));
  }
  if (!section.has("kv_head_num")) config.num_kv_heads = config.num_heads;
  config.hidden_size = config.num_heads * config.head_dim;
  if (!section.has("inter_size")) config.inter_size = 4 * config.hidden_size;
  return folder;
}

void check_folder_ini_agrees(const IniFile& ini, const ModelFolder& manifest) {
  Architecture architecture;
  const IniSection& section = model_section(ini, &architecture);
  const auto disagree = [&](const std::string& key, const std::string& a, const std::string& b) {
    const IniEntry* entry = section.find(key);
    throw Error(ErrorKind::kWeight,
                join("config.ini and manifest.json disagree on ", key, ": ", a, " and ", b),
                join("in ", ini.name(), entry ? join(":", entry->line) : "",
                     "; the manifest is what the files were written by"),
                join("set ", key, " = ", b, " in config.ini, or convert the model again"));
  };
  if (architecture != manifest.config.architecture) {
    disagree("architecture", to_string(architecture), to_string(manifest.config.architecture));
  }
  ModelFolder ignored;
  ignored.has_manifest = true;
  ignored.config = manifest.config;
  read_keys(section, false, &ignored);  // unknown keys, and values that are none
  if (const IniKey* key = find_difference(section, manifest)) {
    disagree(key->name, show_alone(*key, section, manifest), key->show(manifest));
  }
}

}  // namespace flexq_ft
