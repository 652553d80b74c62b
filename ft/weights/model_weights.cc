#include "ft/weights/model_weights.h"

#include <utility>

#include "ft/core/check.h"
#include "ft/weights/file_source.h"
#include "ft/weights/synthetic_source.h"

namespace flexq_ft {

using detail::join;

namespace {

void check_device(const LoadOptions& options) {
  if (options.device == Device::kCpu || options.dtype != DataType::kFp32) return;
  throw Error(ErrorKind::kConfig, "a GPU computes in fp16 or bf16, and fp32 was asked for", {},
              "--dtype fp16 or --dtype bf16, or --device cpu");
}

void check_options(const ModelFolder& folder, const LoadOptions& options) {
  FLEXQ_FT_CHECK(is_float(options.dtype), "compute type ", options.dtype);
  FLEXQ_FT_CHECK(options.rank >= 0 && options.rank < folder.tp, "rank ", options.rank, " of ",
                 folder.tp);
  check_device(options);
  FLEXQ_FT_CHECK(options.synthetic || options.lm_head == folder.lm_head, "lm_head ",
                 options.lm_head, " of ", folder.lm_head, " files");
  const bool at_load = folder.scheme == Scheme::kFloat && is_w8(options.scheme);
  if (options.synthetic || options.scheme == folder.scheme || at_load) return;
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

constexpr char kHeadFile[] = "model.lm_head.weight.bin";

// What a load of these files reads: all of each, but of a float head the rank's rows, which come
// out of the embedding a second time where the two are tied.
int64_t bytes_to_read(const ModelFolder& folder, const LoadOptions& options,
                      const std::vector<WeightFile>& files) {
  int64_t bytes = 0;
  if (folder.lm_head == HeadFormat::kFloat) {
    const std::array<int64_t, 2> rows = head_rows(folder, options.rank);
    bytes = (rows[1] - rows[0]) * folder.config.hidden_size *
            static_cast<int64_t>(size_of(folder.dtype));
  }
  for (const WeightFile& file : files) {
    if (file.name != kHeadFile) bytes += static_cast<int64_t>(file.entry.bytes);
  }
  return bytes;
}

// A model from its parts, whatever they are made of.
class ModelLoader {
 public:
  ModelLoader(const ModelFolder& folder, const LoadOptions& options, WeightSource& source)
      : folder_(folder), options_(options), source_(source) {}

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
    out.lm_head = head(config.tie_word_embeddings ? embedding : kHeadFile);
    return out;
  }

 private:
  Buffer table(const std::string& file, int64_t rows) const {
    return source_.floats(file, {rows, folder_.config.hidden_size}, options_.dtype,
                          FloatRole::kTable);
  }

  NormWeight norm(int64_t layer, const char* name) const {
    const Shape shape{folder_.config.hidden_size};
    NormWeight out;
    out.weight =
        source_.floats(norm_name(layer, name, "weight"), shape, options_.dtype, FloatRole::kNorm);
    if (folder_.config.norm == NormType::kLayer) {
      out.bias =
          source_.floats(norm_name(layer, name, "bias"), shape, options_.dtype, FloatRole::kBias);
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
    return source_.linear(join("layers.", layer, ".", name), parts,
                          {options_.scheme, folder_.scheme, act_bits(layer, name)});
  }

  LinearWeight head(const std::string& float_file) const {
    if (options_.lm_head == HeadFormat::kFloat) {
      const std::array<int64_t, 2> rows = head_rows(folder_, options_.rank);
      return source_.head(float_file, rows[0], rows[1]);
    }
    const Scheme scheme = scheme_of(options_.lm_head);
    return source_.linear("lm_head", {head_part(folder_, options_.rank)}, {scheme, scheme, 16});
  }

  Buffer layer_bias(const LinearPart& part) const {
    if (!part.has_bias) return {};
    return source_.floats(part.bias_name(options_.rank), {part.n}, DataType::kFp32,
                          FloatRole::kBias);
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
  WeightSource& source_;
};

}  // namespace

ModelWeights load_weights(const ModelFolder& folder, const LoadOptions& options) {
  check_options(folder, options);
  const std::unique_ptr<WeightTarget> target =
      make_weight_target(options.device, options.region_bytes);
  ModelWeights out;
  if (options.synthetic) {
    SyntheticSource source(folder, options, *target);
    out = ModelLoader(folder, options, source).load();
  } else {
    if (options.scheme == Scheme::kW8A8 && !folder.has_manifest) refuse_ft_int8_files(folder);
    const std::vector<WeightFile> files = files_to_read(folder, options);
    check_weight_files(folder, files);
    WeightReader reader(folder, options.progress, bytes_to_read(folder, options, files));
    FileSource source(reader, options, *target);
    out = ModelLoader(folder, options, source).load();
  }
  target->finish();
  return out;
}

}  // namespace flexq_ft
