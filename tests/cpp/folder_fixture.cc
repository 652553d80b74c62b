#include "tests/cpp/folder_fixture.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "flexq_kernels/pack.h"

namespace flexq_test {

namespace fs = std::filesystem;

TempFolder::TempFolder() {
  std::string pattern = (fs::temp_directory_path() / "flexq_ft_test_XXXXXX").string();
  path_ = ::mkdtemp(pattern.data()) == nullptr ? "" : pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void write_bytes(const std::string& path, const void* data, size_t bytes) {
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

void write_text(const std::string& path, const std::string& text) {
  write_bytes(path, text.data(), text.size());
}

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

ModelConfig small_llama() {
  ModelConfig config;
  config.name = "small";
  config.vocab_size = 37;
  config.hidden_size = 48;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 12;
  config.inter_size = 40;
  config.max_positions = 64;
  config.rope = RopeConfig{};
  config.bos_id = 1;
  config.eos_ids = {2, 5};
  return config;
}

ModelConfig small_opt() {
  ModelConfig config = small_llama();
  config.architecture = Architecture::kOpt;
  config.num_kv_heads = config.num_heads;
  config.norm = NormType::kLayer;
  config.activation = Activation::kRelu;
  config.gated_ffn = false;
  config.rope.reset();
  config.tie_word_embeddings = true;
  config.qkv_bias = config.dense_bias = config.ffn_bias = true;
  return config;
}

ModelFolder make_folder(const std::string& path, const ModelConfig& config, Scheme scheme,
                        DataType dtype, int tp) {
  ModelFolder folder;
  folder.path = path;
  folder.has_manifest = true;
  folder.config = config;
  folder.scheme = scheme;
  folder.dtype = dtype;
  folder.tp = tp;
  folder.shards = even_shards(config, tp);
  return folder;
}

float file_value(const std::string& name, int64_t i) {
  uint64_t hash = 1469598103934665603u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  hash = (hash ^ static_cast<uint64_t>(i)) * 0x9e3779b97f4a7c15u;
  return static_cast<float>(static_cast<int>((hash >> 40) % 63) - 31) / 64.0f;
}

namespace {

int64_t count_of(const FileEntry& entry) {
  int64_t count = 1;
  for (const int64_t dim : entry.shape) count *= dim;
  return count;
}

template <typename T>
void write_floats(const std::string& path, const WeightFile& file, int64_t count) {
  const bool scale = file.name.find(".scale.") != std::string::npos;
  std::vector<T> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float value = file_value(file.name, i);
    values[static_cast<size_t>(i)] = from_float<T>(scale ? std::fabs(value) + 1.0f / 64.0f : value);
  }
  write_bytes(path, values.data(), values.size() * sizeof(T));
}

void write_file(const ModelFolder& folder, const WeightFile& file) {
  const std::string path = folder.path + "/" + file.name;
  const int64_t count = count_of(file.entry);
  if (file.entry.dtype == "int8" || file.entry.dtype == "int6") {
    std::vector<int8_t> codes(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      codes[static_cast<size_t>(i)] = static_cast<int8_t>(64 * file_value(file.name, i));
    }
    if (file.entry.dtype == "int8") {
      write_bytes(path, codes.data(), codes.size());
      return;
    }
    std::vector<uint8_t> packed(static_cast<size_t>(file.entry.bytes));
    flexq_kernels::pack_int6(packed.data(), codes.data(), file.entry.shape[0], file.entry.shape[1]);
    write_bytes(path, packed.data(), packed.size());
  } else if (file.entry.dtype == "fp32") {
    write_floats<float>(path, file, count);
  } else if (file.entry.dtype == "fp16") {
    write_floats<Half>(path, file, count);
  } else {
    write_floats<BFloat16>(path, file, count);
  }
}

template <typename T, typename Show>
std::string json_list(const std::vector<T>& items, Show&& show) {
  std::string out;
  for (const T& item : items) out += (out.empty() ? "" : ", ") + show(item);
  return "[" + out + "]";
}

std::string json_ints(const std::vector<int64_t>& values) {
  return json_list(values, [](int64_t value) { return std::to_string(value); });
}

std::string json_ranges(const std::vector<std::array<int64_t, 2>>& ranges) {
  return json_list(ranges, [](const std::array<int64_t, 2>& range) {
    return "[" + std::to_string(range[0]) + ", " + std::to_string(range[1]) + "]";
  });
}

std::string json_text(const std::string& text) { return "\"" + text + "\""; }

std::string quantization_text(Scheme scheme, HeadFormat head) {
  const std::string lm_head = std::string("\"lm_head\": \"") + to_string(head) + "\"}";
  if (scheme == Scheme::kFloat) return head == HeadFormat::kFloat ? "null" : "{" + lm_head;
  const bool int6 = scheme == Scheme::kW6Ax;
  return std::string("{\"group_size\": ") + (int6 ? "128" : "0") +
         ", \"layout\": " + (int6 ? "\"frag16x128\"" : "\"row_major\"") +
         ", \"layout_version\": 1, \"k_order\": \"natural\", \"row_map\": \"natural\", "
         "\"smoothing\": null, " +
         lm_head;
}

std::string model_text(const ModelConfig& config) {
  std::ostringstream out;
  out << std::boolalpha << "{\"name\": \"" << config.name << "\"";
  for (const ConfigInteger& integer : config_integers()) {
    out << ", \"" << integer.name << "\": " << config.*integer.field;
  }
  out << ", \"norm\": \"" << to_string(config.norm) << "\", \"norm_eps\": " << config.norm_eps
      << ", \"activation\": \"" << to_string(config.activation)
      << "\", \"gated_ffn\": " << config.gated_ffn << ", \"rope\": ";
  if (config.rope) {
    out << "{\"theta\": " << config.rope->theta << ", \"type\": \"" << to_string(config.rope->type)
        << "\", \"factor\": " << config.rope->factor << "}";
  } else {
    out << "null";
  }
  out << ", \"tie_word_embeddings\": " << config.tie_word_embeddings
      << ", \"qkv_bias\": " << config.qkv_bias << ", \"dense_bias\": " << config.dense_bias
      << ", \"ffn_bias\": " << config.ffn_bias << ", \"sliding_window\": "
      << (config.sliding_window ? std::to_string(config.sliding_window) : "null")
      << ", \"bos_id\": " << config.bos_id << ", \"eos_ids\": " << json_ints(config.eos_ids) << "}";
  return out.str();
}

}  // namespace

void write_weight_files(ModelFolder* folder) {
  for (int rank = 0; rank < folder->tp; ++rank) {
    for (WeightFile& file : rank_files(*folder, rank)) {
      write_file(*folder, file);
      file.entry.xxh3_128 = std::string(32, '0');
      folder->files[file.name] = file.entry;
    }
  }
}

std::string manifest_text(const ModelFolder& folder) {
  std::ostringstream out;
  out << "{\"schema\": \"flexq-ft/manifest/1\", \"tool_version\": \"0.1.0\",\n"
      << "\"source\": {\"kind\": \"safetensors\", \"name\": \"small\", \"sha256\": \"\"},\n"
      << "\"architecture\": \"" << to_string(folder.config.architecture) << "\",\n"
      << "\"model\": " << model_text(folder.config) << ",\n"
      << "\"scheme\": \"" << folder.scheme << "\", \"dtype\": \"" << folder.dtype << "\",\n"
      << "\"policy\": "
      << (folder.scheme == Scheme::kW6Ax
              ? "{\"schema\": \"flexq-ft/policy/1\", \"name\": \"flexq\", \"default\": 6, "
                "\"rules\": [{\"layers\": \"*\", \"linear\": \"down\", \"act_bits\": 8}]}"
              : "null")
      << ",\n\"quantization\": " << quantization_text(folder.scheme, folder.lm_head) << ",\n"
      << "\"tensor_parallel\": {\"size\": " << folder.tp
      << ", \"heads\": " << json_ranges(folder.shards.heads)
      << ", \"kv_heads\": " << json_ranges(folder.shards.kv_heads)
      << ", \"inter\": " << json_ranges(folder.shards.inter)
      << ", \"cut_groups\": " << json_list(folder.cut_groups, json_text) << "},\n\"files\": {";
  const char* separator = "\n";
  for (const auto& [name, entry] : folder.files) {
    out << separator << json_text(name) << ": {\"shape\": " << json_ints(entry.shape)
        << ", \"dtype\": \"" << entry.dtype << "\", \"layout\": \"" << entry.layout
        << "\", \"bytes\": " << entry.bytes << ", \"xxh3_128\": \"" << entry.xxh3_128 << "\"}";
    separator = ",\n";
  }
  out << "}}\n";
  return out.str();
}

std::string ini_text(const ModelFolder& folder) {
  const ModelConfig& config = folder.config;
  std::ostringstream out;
  out << (config.rope ? "[llama]" : "[gpt]") << "\nmodel_name = " << config.name
      << "\nhead_num = " << config.num_heads << "\nsize_per_head = " << config.head_dim
      << "\ninter_size = " << config.inter_size << "\nnum_layer = " << config.num_layers
      << "\nlayernorm_eps = " << config.norm_eps << "\nvocab_size = " << config.vocab_size
      << "\nstart_id = " << config.bos_id << "\nend_id = " << config.eos_ids[0]
      << "\nmax_pos_seq_len = " << config.max_positions << "\nweight_data_type = " << folder.dtype
      << "\n";
  if (config.rope) {
    out << "kv_head_num = " << config.num_kv_heads << "\n";
  } else {
    out << "activation_type = Relu\nlayernorm_type = pre_layernorm\n";
  }
  return out.str();
}

}  // namespace flexq_test
