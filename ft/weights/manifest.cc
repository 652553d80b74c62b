#include "ft/weights/manifest.h"

#include "ft/core/check.h"
#include "ft/weights/json_fields.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

constexpr int64_t kMaxRanks = 1024;
constexpr int64_t kMaxDim = int64_t{1} << 40;
constexpr int64_t kMaxFileBytes = int64_t{1} << 46;

RopeConfig read_rope(JsonFields rope) {
  RopeConfig out;
  out.theta = rope.number("theta");
  out.type = static_cast<RopeConfig::Type>(rope.choice("type", {"default", "linear", "llama3"}));
  const auto number = [&](const char* key, double* field) {
    const JsonValue* given = rope.optional(key);
    if (given != nullptr && !given->is_null()) *field = rope.number(key);
  };
  number("factor", &out.factor);
  number("low_freq_factor", &out.low_freq_factor);
  number("high_freq_factor", &out.high_freq_factor);
  const JsonValue* original = rope.optional("original_max_positions");
  if (original != nullptr && !original->is_null()) {
    out.original_max_positions = rope.integer("original_max_positions", 1, int64_t{1} << 24);
  }
  rope.finish();
  return out;
}

void read_model(JsonFields model, ModelConfig* config) {
  config->name = model.text("name");
  for (const ConfigInteger& integer : config_integers()) {
    config->*integer.field = model.integer(integer.name, integer.min, integer.max);
  }
  config->norm = static_cast<NormType>(model.choice("norm", {"rms", "layer"}));
  config->norm_eps = model.number("norm_eps");
  config->activation =
      static_cast<Activation>(model.choice("activation", {"silu", "relu", "gelu"}));
  config->gated_ffn = model.boolean("gated_ffn");
  if (!model.value("rope").is_null()) config->rope = read_rope(model.object("rope"));
  config->tie_word_embeddings = model.boolean("tie_word_embeddings");
  config->qkv_bias = model.boolean("qkv_bias");
  config->dense_bias = model.boolean("dense_bias");
  config->ffn_bias = model.boolean("ffn_bias");
  if (!model.value("sliding_window").is_null()) {
    config->sliding_window = model.integer("sliding_window", 1, int64_t{1} << 24);
  }
  config->bos_id = model.integer("bos_id", 0, config->vocab_size - 1);
  config->eos_ids = model.integers("eos_ids", 0, config->vocab_size - 1);
  model.finish();
}

// Of floats only the head may be quantised, and then it is all that is said.
HeadFormat read_float_quantization(JsonFields* root) {
  if (root->value("quantization").is_null()) return HeadFormat::kFloat;
  JsonFields fields = root->object("quantization");
  constexpr HeadFormat kHeads[] = {HeadFormat::kW8, HeadFormat::kW6};
  const HeadFormat head = kHeads[fields.choice("lm_head", {"w8", "w6"})];
  fields.finish();
  return head;
}

void read_calibration(JsonFields calibration) {
  calibration.text("text_sha256");
  for (const char* count : {"sequences", "length"}) {
    calibration.integer(count, 1, int64_t{1} << 40);
  }
  calibration.finish();
}

// How the weights were smoothed. They run like any others, so nothing is kept.
void read_smoothing(const JsonDocument& document, JsonFields smoothing) {
  smoothing.expect("method", "smoothquant");
  const JsonValue& alpha = smoothing.value("alpha");
  if (alpha.get<std::string>() != nullptr) {
    smoothing.expect("alpha", "search");
  } else if (const double share = smoothing.number("alpha"); !(share >= 0 && share <= 1)) {
    smoothing.fail("alpha", join("is ", share, ", allowed are 0 to 1, and 'search'"));
  }
  const JsonValue& alphas = smoothing.value("alphas");
  if (!alphas.is_null()) JsonFields(document, alphas, smoothing.name("alphas"));  // an object
  read_calibration(smoothing.object("calibration"));
  smoothing.integer("tokens", 1, int64_t{1} << 40);
  JsonFields factors = smoothing.object("factors");
  factors.integer("bytes", 1, kMaxFileBytes);
  factors.text("xxh3_128");
  factors.finish();
  smoothing.finish();
}

// Which codes were chosen. Any of them are read alike.
void read_rounding(JsonFields rounding) {
  rounding.choice("method", {"scale-search", "gptq"});
  if (!rounding.value("calibration").is_null()) read_calibration(rounding.object("calibration"));
  rounding.finish();
}

// Hardly anything of it is kept: this version reads one layout, and says which if the file has
// another.
void read_quantization(const JsonDocument& document, JsonFields* root, ModelFolder* folder) {
  const Scheme scheme = folder->scheme;
  if (scheme == Scheme::kFloat) {
    folder->lm_head = read_float_quantization(root);
    return;
  }
  const bool int6 = scheme == Scheme::kW6Ax;
  JsonFields fields = root->object("quantization");
  const int64_t group = int6 ? 128 : 0;
  fields.integer("group_size", group, group);
  fields.expect("layout", int6 ? "frag16x128" : "row_major");
  fields.integer("layout_version", 1, 1);
  fields.expect("k_order", "natural");
  fields.expect("row_map", "natural");
  if (!fields.value("smoothing").is_null()) {
    read_smoothing(document, fields.object("smoothing"));
  }
  if (int6 && fields.optional("rounding") != nullptr) read_rounding(fields.object("rounding"));
  constexpr HeadFormat kHeads[] = {HeadFormat::kFloat, HeadFormat::kFloat, HeadFormat::kFloat,
                                   HeadFormat::kW8, HeadFormat::kW6};
  folder->lm_head = kHeads[fields.choice("lm_head", {"fp16", "bf16", "fp32", "w8", "w6"})];
  if (scheme == Scheme::kW8A8 && fields.optional("activation_scales") != nullptr) {
    folder->static_act_scales = fields.choice("activation_scales", {"dynamic", "static"}) == 1;
  }
  fields.finish();
}

std::vector<std::array<int64_t, 2>> read_ranges(const JsonDocument& document, JsonFields* fields,
                                                const char* key, int64_t tp, int64_t end) {
  std::vector<std::array<int64_t, 2>> out;
  const JsonValue::Array& ranges = fields->array(key);
  if (static_cast<int64_t>(ranges.size()) != tp) {
    fields->fail(key, join("has ", ranges.size(), " ranges for ", tp, " ranks"));
  }
  for (const JsonValue& item : ranges) {
    const std::string name = join(fields->name(key), "[", out.size(), "]");
    const auto* pair = item.get<JsonValue::Array>();
    if (pair == nullptr || pair->size() != 2) {
      document.fail(item, join(name, " must be [begin, end]"));
    }
    out.push_back({JsonFields::to_integer(document, (*pair)[0], name, 0, end),
                   JsonFields::to_integer(document, (*pair)[1], name, 0, end)});
    if (out.back()[0] >= out.back()[1]) document.fail(item, join(name, " is empty"));
  }
  return out;
}

void read_tensor_parallel(const JsonDocument& document, JsonFields fields, ModelFolder* folder) {
  const ModelConfig& config = folder->config;
  folder->tp = static_cast<int>(fields.integer("size", 1, kMaxRanks));
  ShardRanges& shards = folder->shards;
  shards.heads = read_ranges(document, &fields, "heads", folder->tp, config.num_heads);
  shards.kv_heads = read_ranges(document, &fields, "kv_heads", folder->tp, config.num_kv_heads);
  shards.inter = read_ranges(document, &fields, "inter", folder->tp, config.inter_size);
  for (const JsonValue& item : fields.array("cut_groups")) {
    const std::string* stem = item.get<std::string>();
    const char* down = config.gated_ffn ? "mlp.down_proj" : "mlp.dense_4h_to_h";
    if (stem == nullptr || (*stem != "attention.dense" && *stem != down)) {
      document.fail(item, join("tensor_parallel.cut_groups may name attention.dense and ", down));
    }
    folder->cut_groups.push_back(*stem);
  }
  fields.finish();
}

void check_file_name(const JsonDocument& document, const JsonMember& file) {
  const std::string& name = file.key;
  if (name.find('/') != std::string::npos || name.find('\\') != std::string::npos || name == ".." ||
      name.find('\0') != std::string::npos) {
    document.fail(file.value, join("'", name, "' points out of its folder"));
  }
  const std::string suffix = ".bin";
  if (name.size() <= suffix.size() || name.size() > 255 ||
      name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) {
    document.fail(file.value, join("'", name, "' is not the name of a .bin file"));
  }
}

FileEntry read_file_entry(JsonFields fields) {
  static constexpr const char* kDtypes[] = {"fp32", "fp16", "bf16", "int8", "int6"};
  static constexpr const char* kLayouts[] = {"row_major", "frag16x128"};
  FileEntry entry;
  entry.shape = fields.integers("shape", 1, kMaxDim);
  if (entry.shape.empty() || entry.shape.size() > 4) {
    fields.fail("shape", join("has ", entry.shape.size(), " dimensions, allowed are 1 to 4"));
  }
  entry.dtype = kDtypes[fields.choice("dtype", {"fp32", "fp16", "bf16", "int8", "int6"})];
  entry.layout = kLayouts[fields.choice("layout", {"row_major", "frag16x128"})];
  entry.bytes = static_cast<uint64_t>(fields.integer("bytes", 0, kMaxFileBytes));
  entry.xxh3_128 = fields.text("xxh3_128");
  if (entry.xxh3_128.size() != 32 ||
      entry.xxh3_128.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fields.fail("xxh3_128", "must be 32 hexadecimal digits");
  }
  fields.finish();
  return entry;
}

void read_source(JsonFields source) {
  source.choice("kind", {"safetensors", "pytorch", "gguf", "ft"});
  source.text("name");
  source.text("sha256");
  source.finish();
}

// How the weights were made from the checkpoint's. They run like any others, so nothing is kept.
void read_transforms(const JsonDocument& document, JsonFields* root) {
  if (root->optional("transforms") == nullptr) return;
  int64_t index = 0;
  for (const JsonValue& item : root->array("transforms")) {
    JsonFields fields(document, item, join("transforms[", index++, "]"));
    fields.choice("name", {"rotation"});
    for (const char* which : {"residual", "heads"}) fields.choice(which, {"hadamard", "hartley"});
    fields.integer("seed", 0, int64_t{1} << 32);
    fields.finish();
  }
}

}  // namespace

ModelFolder read_manifest(const JsonDocument& document) {
  static constexpr Scheme kSchemes[] = {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8,
                                        Scheme::kW6Ax};
  static constexpr DataType kDtypes[] = {DataType::kFp16, DataType::kBf16, DataType::kFp32};
  JsonFields root(document, document.root, "");
  root.expect("schema", "flexq-ft/manifest/1");
  root.text("tool_version");
  read_source(root.object("source"));
  ModelFolder folder;
  folder.has_manifest = true;
  folder.config.architecture =
      static_cast<Architecture>(root.choice("architecture", {"llama", "opt"}));
  read_model(root.object("model"), &folder.config);
  folder.scheme = kSchemes[root.choice("scheme", {"fp16", "w8a16", "w8a8", "w6ax"})];
  folder.dtype = kDtypes[root.choice("dtype", {"fp16", "bf16", "fp32"})];
  const JsonValue& policy = root.value("policy");
  if (policy.is_null() == (folder.scheme == Scheme::kW6Ax)) {
    root.fail("policy", join(policy.is_null() ? "is null" : "is given", " for scheme ",
                             to_string(folder.scheme)));
  }
  if (!policy.is_null()) folder.policy = read_policy(document, policy);
  read_quantization(document, &root, &folder);
  read_transforms(document, &root);
  read_tensor_parallel(document, root.object("tensor_parallel"), &folder);
  const JsonValue& files = root.value("files");
  JsonFields(document, files, "files");  // an object
  for (const JsonMember& file : *files.get<JsonValue::Object>()) {
    check_file_name(document, file);
    folder.files[file.key] =
        read_file_entry(JsonFields(document, file.value, join("files.", file.key)));
  }
  root.finish();
  return folder;
}

}  // namespace flexq_ft
