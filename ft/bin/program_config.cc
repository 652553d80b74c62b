#include "ft/bin/program_config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <vector>

#include "ft/core/check.h"
#include "ft/decoding/engine_options.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

const ProgramStyle kLlamaExample = {
    "llama_example", "llama_config.ini", Architecture::kLlama, "request", ", ", true};
const ProgramStyle kMultiGpuGptExample = {"multi_gpu_gpt_example",
                                          "gpt_config.ini",
                                          Architecture::kOpt,
                                          "ft_instance_hyperparameter",
                                          " ",
                                          false};

namespace {

constexpr const char* kInstance = "ft_instance_hyperparameter";
constexpr const char* kRequest = "request";
constexpr const char* kModel = "";  // the section that model_name names

struct Key {
  const char* section;
  const char* name;
};

// FT's keys that change nothing here, each with the reason.
constexpr Key kWithoutEffect[] = {
    {kInstance, "enable_custom_all_reduce"},    // FT's programs do not read it either
    {kInstance, "max_batch_size"},              // nor this one: the batch is the request's
    {kInstance, "shared_contexts_ratio"},       // every prompt is prefilled by itself
    {kInstance, "enable_flash_attn"},           // there is one attention
    {kInstance, "len_penalty"},                 // of beam search only
    {kInstance, "beam_search_diversity_rate"},  // of beam search only
    {kRequest, "len_penalty"},                  // of beam search only
    {kRequest, "beam_search_diversity_rate"},   // of beam search only
    {kRequest, "remove_padding"},               // prompts are never padded
    {kModel, "start_id"},                       // of requests without a prompt, which are refused
    {kModel, "weight_data_type"},               // FT too takes it from model_dir/config.ini
    {kModel, "prompt_learning_start_id"},       // of prompt learning, refused by num_tasks
    {kModel, "adapter_inter_size"},             // of adapters, refused by has_adapters
};

struct RefusedKey {
  Key key;
  int64_t most;  // the largest value that asks for nothing
  const char* why;
};

// FT's keys for what there is not; the value that asks for nothing is accepted.
constexpr RefusedKey kRefused[] = {
    {{kInstance, "pipeline_para_size"}, 1, "there is no pipeline parallelism"},
    {{kInstance, "beam_width"}, 1, "there is no beam search"},
    {{kRequest, "beam_width"}, 1, "there is no beam search"},
    {{kInstance, "sparse"}, 0, "there are no sparse weights"},
    {{kInstance, "release_dense"}, 0, "there are no sparse weights"},
    {{kInstance, "debug_mode"}, 0, "there is no debug mode"},
    {{kRequest, "memory_len"}, 0, "the whole context is kept"},
    {{kRequest, "return_log_probs"}, 0, "logprob.out is not written; use flexq-ft run --logprobs"},
    {{kRequest, "context_log_probs"}, 0, "use flexq-ft eval"},
    {{kRequest, "context_embeddings"}, 0, "they are not written"},
    {{kModel, "num_tasks"}, 0, "there is no prompt learning"},
    {{kModel, "prompt_learning_type"}, 0, "there is no prompt learning"},
    {{kModel, "has_adapters"}, 0, "there are no adapters"},
};

constexpr const char* kSamplingKeys[] = {
    "top_k", "top_p", "temperature", "repetition_penalty", "min_length", "presence_penalty"};

// A number, or a boolean as 0 or 1.
int64_t int_or_bool(const IniSection& section, const char* key) {
  int64_t value = 0;
  return parse_integer(section.find(key)->value, &value) ? value : section.get_bool(key);
}

// Refuses what there is not, and marks what has no effect as known.
void apply_tables(const IniSection& section, const char* name) {
  for (const Key& key : kWithoutEffect) {
    if (std::string_view(key.section) == name) section.ignore(key.name);
  }
  for (const RefusedKey& refused : kRefused) {
    if (std::string_view(refused.key.section) != name) continue;
    section.ignore(refused.key.name);
    if (!section.has(refused.key.name)) continue;
    const int64_t value = int_or_bool(section, refused.key.name);
    if (value > refused.most) {
      section.fail(refused.key.name, join("is ", value, ", but ", refused.why));
    }
  }
}

// The section of model_name, or null if there is none and no other that could be meant.
const IniSection* find_model_section(const IniFile& ini) {
  std::vector<std::string> others;
  for (const IniSection& section : ini.sections()) {
    if (section.name() != kInstance && section.name() != kRequest) others.push_back(section.name());
  }
  const IniSection& instance = ini.section(kInstance);
  // Without a model section no name is needed: the sizes come from the folder.
  const std::string name = to_lower(others.empty() ? instance.get_string("model_name", "")
                                                   : instance.get_string("model_name"));
  const IniSection* model = ini.find(name);
  if (model == nullptr && !others.empty()) {
    throw Error(ErrorKind::kConfig,
                join(ini.name(), ": there is no section [", name, "], which model_name names",
                     did_you_mean(name, others)),
                "the other sections are " + join_names(others));
  }
  return model;
}

int64_t at_least(const IniSection& section, const char* key, int64_t fallback, int64_t least) {
  const int64_t value = section.get_int(key, fallback);
  if (value < least) section.fail(key, join("is ", value, ", the least is ", least));
  return value;
}

void read_instance(const IniSection& section, ProgramConfig* config) {
  config->model_dir = section.get_string("model_dir");
  config->tensor_para_size = at_least(section, "tensor_para_size", 1, 1);
  config->max_seq_len = at_least(section, "max_seq_len", 0, 0);
  const std::string dtype = section.get_string("data_type", "");
  if (!dtype.empty()) {
    DataType parsed;
    if (!parse_dtype(dtype, &parsed) || !is_float(parsed)) {
      section.fail("data_type", "is '" + dtype + "', allowed are fp32, fp16 and bf16");
    }
    config->dtype = parsed;
  }
  const std::string device = section.get_string("device", "auto");
  if (device != "auto" && device != "cpu" && device != "cuda") {
    section.fail("device", "is '" + device + "', allowed are auto, cuda and cpu");
  }
  if (device != "auto") config->device = device == "cuda" ? Device::kCuda : Device::kCpu;
  section.ignore("int8_mode");
  if (section.has("int8_mode")) {
    const int64_t mode = section.get_int("int8_mode");
    Scheme scheme;
    if (mode < 0 || mode > 5 || !scheme_of_int8_mode(static_cast<int>(mode), &scheme)) {
      section.fail("int8_mode", join("is ", mode, ", allowed are 0 (float), 1 (W8A16), 2 (W8A8) ",
                                     "and 5 (W6Ax)"));
    }
    config->scheme = scheme;
  }
}

void read_sampling(const IniFile& ini, const ProgramStyle& style, SamplingParams* sampling) {
  const IniSection& section = ini.section(style.sampling_section);
  for (const char* other_name : {kInstance, kRequest}) {
    const IniSection& other = ini.section(other_name);
    if (&other == &section) continue;
    for (const char* key : kSamplingKeys) {
      if (other.has(key)) {
        other.fail(key, join("belongs to section [", section.name(), "] in ", style.name));
      }
    }
  }
  sampling->top_k = section.get_int("top_k", 1);
  sampling->top_p = section.get_float("top_p", 0.0);
  sampling->temperature = section.get_float("temperature", 1.0);
  sampling->repetition_penalty = section.get_float("repetition_penalty", 1.0);
  sampling->presence_penalty = section.get_float("presence_penalty", 0.0);
  sampling->min_tokens = at_least(section, "min_length", 0, 0);
}

void read_request(const IniSection& section, ProgramConfig* config) {
  config->batch_size = at_least(section, "request_batch_size", 0, 0);
  config->request_output_len = at_least(section, "request_output_len", 0, 0);
  config->total_output_len = at_least(section, "total_output_len", 0, 0);
  config->timed_iterations = at_least(section, "timed_iterations", 1, 1);
}

void agree(const IniSection& section, const char* key, int64_t folders, const std::string& path) {
  const int64_t value = section.get_int(key, folders);
  if (value != folders) section.fail(key, join("is ", value, ", but ", path, " has ", folders));
}

void agree(const IniSection& section, const char* key, double folders, const std::string& path) {
  const double value = section.get_float(key, folders);
  if (std::abs(value - folders) > 1e-5 * std::abs(folders)) {
    section.fail(key, join("is ", value, ", but ", path, " has ", folders));
  }
}

void check_variant(const IniSection& section, const ModelFolder& folder) {
  const bool relu = folder.config.activation == Activation::kRelu;
  const std::string folders = relu ? "opt-pre" : "gpt";
  const std::string variant = section.get_string("model_variant", folders);
  if (variant != folders) {
    section.fail("model_variant", join("is ", variant, ", but ", folder.path, " is ", folders,
                                       "; others are not supported"));
  }
}

// FT too takes the longest of all lines, whether or not it is in the batch.
void set_lengths(const ProgramConfig& config, const ModelFolder& folder, ProgramRequest* request) {
  size_t longest = 0;
  for (const auto& prompt : request->prompts) longest = std::max(longest, prompt.size());
  const auto input = static_cast<int64_t>(longest);
  request->total_len =
      config.total_output_len > input ? config.total_output_len : input + config.request_output_len;
  const int64_t output = request->total_len - input;
  if (output < 1) {
    throw Error(ErrorKind::kConfig,
                join("nothing to generate: request_output_len is ", config.request_output_len,
                     ", total_output_len is ", config.total_output_len,
                     ", and the longest prompt has ", input, " ids"));
  }
  const int64_t context = context_limit(folder.config);
  const bool asked = config.max_seq_len > 0 && config.max_seq_len < context;
  const int64_t limit = asked ? config.max_seq_len : context;
  if (request->total_len > limit) {
    throw Error(ErrorKind::kConfig,
                join("prompt and output are ", request->total_len, " ids (", input, " + ", output,
                     "), but ", asked ? "max_seq_len is " : "the model's context is ", limit));
  }
  request->sampling.max_tokens = output;
}

void cut_batch(const ProgramConfig& config, const std::string& path, ProgramRequest* request) {
  const auto lines = static_cast<int64_t>(request->prompts.size());
  if (config.batch_size > lines) {  // FT fills the batch up with rows of end_id
    throw Error(ErrorKind::kConfig,
                join("request_batch_size is ", config.batch_size, ", but ", path, " has ", lines,
                     lines == 1 ? " line" : " lines"),
                "", join("request_batch_size = ", lines, ", or 0 for all lines"));
  }
  if (config.batch_size > 0) request->prompts.resize(static_cast<size_t>(config.batch_size));
}

TokenRows words_beside(const std::string& start_ids_path, const char* file,
                       const ModelFolder& folder) {
  const auto path = std::filesystem::path(start_ids_path).parent_path() / file;
  if (!std::filesystem::exists(path)) return {};
  TokenRows words = read_word_list(path.string());
  check_ids(words, folder.config.vocab_size, path.string(), /*one_line=*/true);
  return words;
}

}  // namespace

ProgramConfig read_program_config(const IniFile& ini, const ProgramStyle& style) {
  ProgramConfig config;
  const IniSection& instance = ini.section(kInstance);
  const IniSection& request = ini.section(kRequest);
  apply_tables(instance, kInstance);
  apply_tables(request, kRequest);
  read_instance(instance, &config);
  read_request(request, &config);
  read_sampling(ini, style, &config.sampling);
  if (const IniSection* model = find_model_section(ini)) {
    apply_tables(*model, kModel);
    if (model->has("end_id")) config.sampling.end_ids = {model->get_int("end_id")};
  }
  instance.refuse_unread();
  request.refuse_unread();
  return config;
}

void check_model_section(const IniFile& ini, const ProgramStyle& style, const ModelFolder& folder) {
  const ModelConfig& model = folder.config;
  if (model.architecture != style.architecture) {
    const ProgramStyle& other =
        style.architecture == Architecture::kLlama ? kMultiGpuGptExample : kLlamaExample;
    throw Error(ErrorKind::kConfig,
                join(folder.path, " is not a model for ", style.name, " but for ", other.name), "",
                join(other.name, " INI"));
  }
  const IniSection* section = find_model_section(ini);
  if (section == nullptr) return;
  apply_tables(*section, kModel);
  section->ignore("end_id");  // a choice of the request, not a size
  agree(*section, "head_num", model.num_heads, folder.path);
  agree(*section, "kv_head_num", model.num_kv_heads, folder.path);
  agree(*section, "size_per_head", model.head_dim, folder.path);
  agree(*section, "hidden_units", model.hidden_size, folder.path);
  agree(*section, "inter_size", model.inter_size, folder.path);
  agree(*section, "num_layer", model.num_layers, folder.path);
  agree(*section, "decoder_layers", model.num_layers, folder.path);
  agree(*section, "vocab_size", model.vocab_size, folder.path);
  agree(*section, "max_pos_seq_len", model.max_positions, folder.path);
  agree(*section, "layernorm_eps", model.norm_eps, folder.path);
  if (model.rope) {
    agree(*section, "rotary_embedding", model.head_dim, folder.path);
    agree(*section, "rope_theta", model.rope->theta, folder.path);
    agree(*section, "rope_scaling", model.rope->factor, folder.path);
  } else {
    check_variant(*section, folder);
  }
  section->refuse_unread();
}

ProgramRequest make_request(const ProgramConfig& config, const ModelFolder& folder,
                            const std::string& start_ids_path) {
  ProgramRequest request;
  request.sampling = config.sampling;
  request.prompts = read_start_ids(start_ids_path);
  check_ids(request.prompts, folder.config.vocab_size, start_ids_path, /*one_line=*/false);
  set_lengths(config, folder, &request);
  cut_batch(config, start_ids_path, &request);
  const std::vector<int64_t>& ends =
      request.sampling.end_ids.empty() ? folder.config.eos_ids : request.sampling.end_ids;
  if (!ends.empty()) request.pad_id = ends.front();
  request.sampling.stop_words = words_beside(start_ids_path, "stop_words.csv", folder);
  request.sampling.bad_words = words_beside(start_ids_path, "bad_words.csv", folder);
  request.sampling.validate(folder.config.vocab_size);
  return request;
}

EngineOptions make_engine_options(const ProgramConfig& config, const ModelFolder& folder,
                                  const ProgramRequest& request) {
  const Scheme scheme = config.scheme.value_or(folder.scheme);
  const bool quantised_at_load = folder.scheme == Scheme::kFloat && scheme != Scheme::kW6Ax;
  if (scheme != folder.scheme && !quantised_at_load) {
    throw Error(ErrorKind::kConfig,
                join("int8_mode is ", int8_mode(scheme), ", but ", folder.path, " has ",
                     int8_mode(folder.scheme), " (", folder.scheme, ")"),
                "only float folders can be quantised at load, to 1 or 2",
                "flexq-ft convert HF_DIR OUT --scheme " + std::string(to_string(scheme)));
  }
  EngineOptions options;
  options.dtype = config.dtype;
  options.scheme = config.scheme;
  options.max_len = request.total_len;
  options.max_batch = static_cast<int64_t>(request.prompts.size());
  return options;
}

}  // namespace flexq_ft
