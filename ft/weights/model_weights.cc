#include "ft/weights/model_weights.h"

#include <algorithm>
#include <utility>

#include "ft/core/check.h"
#include "ft/weights/float_file.h"
#include "ft/weights/linear_loader.h"
#include "ft/weights/weight_files.h"

namespace flexq_ft {

using detail::join;

namespace {

bool is_w8(Scheme scheme) { return scheme == Scheme::kW8A16 || scheme == Scheme::kW8A8; }

void check_options(const ModelFolder& folder, const LoadOptions& options) {
  FLEXQ_FT_CHECK(is_float(options.dtype), "compute type ", options.dtype);
  FLEXQ_FT_CHECK(options.rank >= 0 && options.rank < folder.tp, "rank ", options.rank, " of ",
                 folder.tp);
  const bool at_load = folder.scheme == Scheme::kFloat && is_w8(options.scheme);
  if (options.scheme == folder.scheme || at_load) return;
  throw Error(ErrorKind::kConfig,
              join("scheme ", options.scheme, " (int8_mode ", int8_mode(options.scheme),
                   ") was asked for, and ", folder.path, " holds ", folder.scheme, " (int8_mode ",
                   int8_mode(folder.scheme), ")"),
              "only float folders can be quantised at load, to w8a16 or w8a8",
              join("flexq-ft convert SOURCE OUT --scheme ", options.scheme));
}

std::vector<WeightFile> files_to_read(const ModelFolder& folder, const LoadOptions& options) {
  std::vector<WeightFile> files = rank_files(folder, options.rank);
  if (options.scheme == folder.scheme) return files;
  for (int rank = 0; rank < folder.tp; ++rank) {
    if (rank == options.rank) continue;
    for (WeightFile& file : row_parallel_files(folder, rank)) files.push_back(std::move(file));
  }
  return files;
}

class ModelLoader {
 public:
  ModelLoader(const ModelFolder& folder, const LoadOptions& options)
      : folder_(folder), options_(options), linear_(folder, options) {}

  ModelWeights load() const {
    const ModelConfig& config = folder_.config;
    ModelWeights out;
    const std::string embedding = embedding_name(folder_);
    out.embedding = table(embedding, config.vocab_size);
    if (!config.rope) out.positional = table("model.wpe.bin", config.max_positions);
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      out.layers.push_back(load_layer(layer));
    }
    out.final_norm = norm(-1, "final_layernorm");
    // Rows of the head: equal shares, the last ranks' shorter.
    const int64_t share = (config.vocab_size + folder_.tp - 1) / folder_.tp;
    const int64_t begin = std::min(share * options_.rank, config.vocab_size);
    out.lm_head =
        linear_.load_head(config.tie_word_embeddings ? embedding : "model.lm_head.weight.bin",
                          begin, std::min(begin + share, config.vocab_size));
    return out;
  }

 private:
  Buffer table(const std::string& file, int64_t rows) const {
    const int64_t hidden = folder_.config.hidden_size;
    Buffer out(options_.dtype, {rows, hidden}, MemoryKind::kWeights);
    read_floats(folder_, file, 0, rows * hidden, options_.dtype, out.data());
    return out;
  }

  NormWeight norm(int64_t layer, const char* name) const {
    const int64_t hidden = folder_.config.hidden_size;
    NormWeight out;
    out.weight = linear_.load_floats(norm_name(layer, name, "weight"), hidden, options_.dtype);
    if (folder_.config.norm == NormType::kLayer) {
      out.bias = linear_.load_floats(norm_name(layer, name, "bias"), hidden, options_.dtype);
    }
    return out;
  }

  int act_bits(int64_t layer, const char* linear) const {
    switch (options_.scheme) {
      case Scheme::kW6Ax:
        return options_.policy.act_bits(layer, linear);
      case Scheme::kW8A8:
        return 8;
      case Scheme::kFloat:
      case Scheme::kW8A16:
        return 16;
    }
    return 16;
  }

  LinearWeight linear(int64_t layer, const char* name, const std::vector<LinearPart>& parts) const {
    return linear_.load(join("layers.", layer, ".", name), parts, act_bits(layer, name));
  }

  Buffer layer_bias(const LinearPart& part) const {
    if (!part.has_bias) return {};
    return linear_.load_floats(part.bias_name(options_.rank), part.n, DataType::kFp32);
  }

  LayerWeights load_layer(int64_t layer) const {
    const LayerParts parts = layer_parts(folder_, layer, options_.rank);
    const bool gated = folder_.config.gated_ffn;
    LayerWeights out;
    out.input_norm = norm(layer, "input_layernorm");
    out.qkv = linear(layer, "qkv", {parts.qkv});
    out.o = linear(layer, "o", {parts.o});
    out.o_bias = layer_bias(parts.o);
    out.post_norm = norm(layer, "post_attention_layernorm");
    out.up = linear(layer, gated ? "gate_up" : "fc1", parts.up);
    out.down = linear(layer, gated ? "down" : "fc2", {parts.down});
    out.down_bias = layer_bias(parts.down);
    return out;
  }

  const ModelFolder& folder_;
  const LoadOptions& options_;
  LinearLoader linear_;
};

}  // namespace

ModelWeights load_weights(const ModelFolder& folder, const LoadOptions& options) {
  check_options(folder, options);
  if (options.scheme == Scheme::kW8A8 && !folder.has_manifest) refuse_ft_int8_files(folder);
  check_weight_files(folder, files_to_read(folder, options));
  return ModelLoader(folder, options).load();
}

}  // namespace flexq_ft
