#include "ft/weights/weight_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "flexq_kernels/cpu/parallel.h"
#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

std::string path_of(const ModelFolder& folder, const std::string& name) {
  return folder.path + "/" + name;
}

int64_t length(const std::array<int64_t, 2>& range) { return range[1] - range[0]; }

FileEntry plain_entry(std::vector<int64_t> shape, const std::string& dtype, size_t element) {
  FileEntry entry;
  entry.bytes = element;
  for (const int64_t dim : shape) entry.bytes *= static_cast<uint64_t>(dim);
  entry.shape = std::move(shape);
  entry.dtype = dtype;
  entry.layout = "row_major";
  return entry;
}

FileEntry float_entry(std::vector<int64_t> shape, DataType dtype) {
  return plain_entry(std::move(shape), to_string(dtype), size_of(dtype));
}

FileEntry int6_entry(int64_t n, int64_t k) {
  FileEntry entry;
  entry.shape = {n, k};
  entry.dtype = "int6";
  entry.layout = "frag16x128";
  entry.bytes = static_cast<uint64_t>(flexq_kernels::packed_bytes(n, k));
  return entry;
}

void add_weight(const ModelFolder& folder, Scheme scheme, const LinearPart& part, int rank,
                std::vector<WeightFile>* files) {
  switch (scheme) {
    case Scheme::kFloat:
      files->push_back({part.weight_name(rank), float_entry({part.k, part.n}, folder.dtype)});
      break;
    case Scheme::kW8A16:
    case Scheme::kW8A8:
      files->push_back({part.w8_name(rank), plain_entry({part.n, part.k}, "int8", 1)});
      files->push_back({part.w8_scale_name(rank), float_entry({part.n}, DataType::kFp32)});
      if (scheme == Scheme::kW8A8 && folder.static_act_scales) {
        files->push_back({part.act_scale_name(rank), float_entry({1}, DataType::kFp32)});
      }
      break;
    case Scheme::kW6Ax: {
      const int64_t groups = flexq_kernels::group_count(part.k);
      files->push_back({part.int6_name(rank), int6_entry(part.n, part.k)});
      files->push_back(
          {part.int6_scale_name(rank), float_entry({groups, part.n}, DataType::kFp16)});
      break;
    }
  }
}

void add_linear(const ModelFolder& folder, const LinearPart& part, int rank,
                std::vector<WeightFile>* files) {
  add_weight(folder, folder.scheme, part, rank, files);
  if (part.has_bias) {
    files->push_back({part.bias_name(rank), float_entry({part.n}, folder.dtype)});
  }
}

void add_norm(const ModelFolder& folder, int64_t layer, const char* norm,
              std::vector<WeightFile>* files) {
  const FileEntry entry = float_entry({folder.config.hidden_size}, folder.dtype);
  files->push_back({norm_name(layer, norm, "weight"), entry});
  if (folder.config.norm == NormType::kLayer) {
    files->push_back({norm_name(layer, norm, "bias"), entry});
  }
}

// "" if the file is as it should be.
std::string fault_of(const ModelFolder& folder, const WeightFile& file) {
  struct stat info{};
  if (::stat(path_of(folder, file.name).c_str(), &info) != 0) {
    return errno == ENOENT ? file.name + " is missing"
                           : join(file.name, " cannot be read: ", std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) return file.name + " is not a regular file";
  const auto bytes = static_cast<uint64_t>(info.st_size);
  if (bytes == file.entry.bytes) return {};
  return join(file.name, " holds ", with_commas(bytes), " bytes, expected ",
              with_commas(file.entry.bytes));
}

// A block is read by all threads, which keeps a fast disk (or the page cache) busy.
constexpr size_t kSliceBytes = size_t{4} << 20;

struct ReadFault {
  size_t at = 0;
  std::string text;  // empty: none
};

// last: where the read of all threads ends.
ReadFault pread_all(int fd, char* out, size_t bytes, size_t offset, size_t last) {
  for (size_t done = 0; done < bytes;) {
    const size_t at = offset + done;
    const ssize_t count = ::pread(fd, out + done, bytes - done, static_cast<off_t>(at));
    if (count > 0) {
      done += static_cast<size_t>(count);
    } else if (count == 0) {
      return {at, join("it ended after ", with_commas(at), " bytes of ", with_commas(last),
                       ": it changed while it was read")};
    } else if (errno != EINTR) {
      return {at, std::strerror(errno)};
    }
  }
  return {};
}

}  // namespace

std::string LinearPart::weight_name(int rank) const { return join(stem, ".weight.", rank, ".bin"); }
std::string LinearPart::int6_name(int rank) const {
  return join(stem, ".weight.int6.", rank, ".bin");
}
std::string LinearPart::int6_scale_name(int rank) const {
  return join(stem, ".weight.int6.scale.", rank, ".bin");
}
std::string LinearPart::w8_name(int rank) const { return join(stem, ".weight.w8.", rank, ".bin"); }
std::string LinearPart::w8_scale_name(int rank) const {
  return join(stem, ".weight.w8.scale.", rank, ".bin");
}
std::string LinearPart::act_scale_name(int rank) const {
  return join(stem, ".weight.w8.act_scale.", rank, ".bin");
}
std::string LinearPart::bias_name(int rank) const {
  return row_parallel ? stem + ".bias.bin" : join(stem, ".bias.", rank, ".bin");
}

LayerParts layer_parts(const ModelFolder& folder, int64_t layer, int rank) {
  const ModelConfig& config = folder.config;
  const auto r = static_cast<size_t>(rank);
  const int64_t heads = length(folder.shards.heads[r]);
  const int64_t kv_heads = length(folder.shards.kv_heads[r]);
  const int64_t inter = length(folder.shards.inter[r]);
  const int64_t hidden = config.hidden_size;
  const std::string prefix = join("model.layers.", layer, ".");
  LayerParts parts;
  parts.qkv = {prefix + "attention.query_key_value", (heads + 2 * kv_heads) * config.head_dim,
               hidden, false, config.qkv_bias};
  parts.o = {prefix + "attention.dense", hidden, heads * config.head_dim, true, config.dense_bias};
  const auto add_up = [&](const char* name) {
    parts.up.push_back({prefix + name, inter, hidden, false, config.ffn_bias});
  };
  if (config.gated_ffn) {
    add_up("mlp.gate_proj");
    add_up("mlp.up_proj");
  } else {
    add_up("mlp.dense_h_to_4h");
  }
  parts.down = {prefix + (config.gated_ffn ? "mlp.down_proj" : "mlp.dense_4h_to_h"), hidden, inter,
                true, config.ffn_bias};
  return parts;
}

LinearPart head_part(const ModelFolder& folder, int rank) {
  const std::array<int64_t, 2> rows = head_rows(folder, rank);
  return {"model.lm_head", rows[1] - rows[0], folder.config.hidden_size, false, false};
}

std::array<int64_t, 2> head_rows(const ModelFolder& folder, int rank) {
  const int64_t vocab = folder.config.vocab_size;
  const int64_t share = (vocab + folder.tp - 1) / folder.tp;
  const int64_t begin = std::min(share * rank, vocab);
  return {begin, std::min(begin + share, vocab)};
}

std::string embedding_name(const ModelFolder& folder) {
  std::string usual = "model.wte.weight.bin";
  std::string other = "model.wte.bin";
  if (folder.config.architecture == Architecture::kOpt) std::swap(usual, other);
  const bool has_other =
      folder.has_manifest ? folder.files.count(other) != 0 : file_exists(folder, other);
  const bool has_usual =
      folder.has_manifest ? folder.files.count(usual) != 0 : file_exists(folder, usual);
  return has_other && !has_usual ? other : usual;
}

std::string norm_name(int64_t layer, const char* norm, const char* what) {
  const std::string prefix = layer < 0 ? "model." : join("model.layers.", layer, ".");
  return join(prefix, norm, ".", what, ".bin");
}

std::vector<WeightFile> rank_files(const ModelFolder& folder, int rank) {
  const ModelConfig& config = folder.config;
  std::vector<WeightFile> files;
  const FileEntry table = float_entry({config.vocab_size, config.hidden_size}, folder.dtype);
  files.push_back({embedding_name(folder), table});
  if (!config.rope) {
    files.push_back(
        {"model.wpe.bin", float_entry({config.max_positions, config.hidden_size}, folder.dtype)});
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const LayerParts parts = layer_parts(folder, layer, rank);
    add_norm(folder, layer, "input_layernorm", &files);
    add_linear(folder, parts.qkv, rank, &files);
    add_linear(folder, parts.o, rank, &files);
    add_norm(folder, layer, "post_attention_layernorm", &files);
    for (const LinearPart& part : parts.up) add_linear(folder, part, rank, &files);
    add_linear(folder, parts.down, rank, &files);
  }
  add_norm(folder, -1, "final_layernorm", &files);
  if (folder.lm_head != HeadFormat::kFloat) {
    add_weight(folder, scheme_of(folder.lm_head), head_part(folder, rank), rank, &files);
  } else if (!config.tie_word_embeddings) {
    files.push_back({"model.lm_head.weight.bin", table});
  }
  return files;
}

std::vector<WeightFile> row_parallel_files(const ModelFolder& folder, int rank) {
  std::vector<WeightFile> files;
  for (int64_t layer = 0; layer < folder.config.num_layers; ++layer) {
    const LayerParts parts = layer_parts(folder, layer, rank);
    for (const LinearPart* part : {&parts.o, &parts.down}) {
      files.push_back({part->weight_name(rank), float_entry({part->k, part->n}, folder.dtype)});
    }
  }
  return files;
}

void check_weight_files(const ModelFolder& folder, const std::vector<WeightFile>& files) {
  constexpr size_t kShown = 3;
  std::string shown;
  size_t faults = 0;
  for (const WeightFile& file : files) {
    const std::string fault = fault_of(folder, file);
    if (fault.empty()) continue;
    if (faults++ < kShown) shown += (shown.empty() ? "" : "; ") + fault;
  }
  if (faults == 0) return;
  if (faults > kShown) shown += join("; and ", faults - kShown, " more");
  const char* hint = folder.has_manifest
                         ? "flexq-ft convert SOURCE OUT   (verifies, and repairs the files that "
                           "differ)"
                         : "convert the checkpoint again, or correct the sizes and "
                           "weight_data_type in config.ini";
  throw Error(ErrorKind::kWeight,
              join(faults, " of ", files.size(), " weight files in ", folder.path,
                   faults == 1 ? " does" : " do", " not match ",
                   folder.has_manifest ? "manifest.json" : "config.ini", "; nothing was loaded"),
              shown, hint);
}

void refuse_ft_int8_files(const ModelFolder& folder) {
  for (const char* stem : {"attention.query_key_value", "mlp.dense_h_to_4h"}) {
    const std::string name = join("model.layers.0.", stem, ".weight.int8.0.bin");
    if (!file_exists(folder, name)) continue;
    throw Error(ErrorKind::kWeight,
                join(folder.path, " holds FasterTransformer's own int8 files (", name,
                     "), which int8_mode 2 does not read"),
                "they have one scale per tensor and FasterTransformer's order; w8a8 here has one "
                "per channel, in files named .weight.w8.",
                "convert the model with flexq-ft convert --scheme w8a8, or run this folder with "
                "--scheme w8a16 or fp16");
  }
}

bool file_exists(const ModelFolder& folder, const std::string& name) {
  struct stat info{};
  return ::stat(path_of(folder, name).c_str(), &info) == 0;
}

void read_weight_bytes(const ModelFolder& folder, const std::string& name, void* out, size_t bytes,
                       size_t offset) {
  const std::string path = path_of(folder, name);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error(ErrorKind::kWeight, join("cannot open ", path), std::strerror(errno));
  ReadFault fault;  // the first of the file
  std::mutex mutex;
  const auto count = static_cast<int64_t>((bytes + kSliceBytes - 1) / kSliceBytes);
  flexq_kernels::parallel_ranges(count, static_cast<int64_t>(bytes), [&](int64_t a, int64_t b) {
    const size_t begin = static_cast<size_t>(a) * kSliceBytes;
    const size_t end = std::min(bytes, static_cast<size_t>(b) * kSliceBytes);
    ReadFault found =
        pread_all(fd, static_cast<char*>(out) + begin, end - begin, offset + begin, offset + bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    if (found.text.empty()) return;
    if (fault.text.empty() || found.at < fault.at) fault = std::move(found);
  });
  ::close(fd);
  if (!fault.text.empty()) {
    throw Error(ErrorKind::kWeight, join("cannot read ", path), fault.text);
  }
}

}  // namespace flexq_ft
