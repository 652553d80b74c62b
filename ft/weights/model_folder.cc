#include "ft/weights/model_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/weights/folder_ini.h"
#include "ft/weights/manifest.h"
#include "ft/weights/text.h"
#include "ft/weights/weight_files.h"

namespace flexq_ft {

using detail::join;

namespace {

[[noreturn]] void fail(const std::string& message, const std::string& cause = {},
                       const std::string& hint = {}) {
  throw Error(ErrorKind::kWeight, message, cause, hint);
}

bool is_folder(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

void validate_config(const ModelConfig& config, const std::string& where) {
  try {
    config.validate();
  } catch (const Error& error) {
    throw Error(error.kind(), where + ": " + error.what(), error.cause(), error.hint());
  }
}

// "4-gpu" -> 4, otherwise 0.
int tp_of_name(const std::string& path) {
  size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return 0;
  const std::string whole = path.substr(0, end + 1);
  const std::string name = whole.substr(whole.rfind('/') + 1);
  const size_t dash = name.find("-gpu");
  int64_t tp = 0;
  if (dash == std::string::npos || dash + 4 != name.size()) return 0;
  if (!parse_integer(name.substr(0, dash), &tp) || tp < 1 || tp > 1024) return 0;
  return static_cast<int>(tp);
}

int count_rank_files(const ModelFolder& folder) {
  int ranks = 0;
  while (ranks < 1024 && file_exists(folder, join("model.layers.0.attention.query_key_value",
                                                  ".weight.", ranks, ".bin"))) {
    ++ranks;
  }
  return std::max(ranks, 1);
}

void refuse_quantized_without_manifest(const ModelFolder& folder) {
  if (folder.scheme == Scheme::kFloat) return;
  if (folder.scheme == Scheme::kW8A8) refuse_ft_int8_files(folder);
  const int mode = int8_mode(folder.scheme);
  const bool int6 = folder.scheme == Scheme::kW6Ax;
  const char* scales = int6 ? "model.layers.0.attention.query_key_value.weight.int6.scale.0.bin"
                            : "model.layers.0.attention.query_key_value.weight.w8.scale.0.bin";
  const bool ours = file_exists(folder, scales);
  const std::string cause =
      ours ? "the manifest says in which layout the files are"
           : join("the folder has no scale files of this project (", scales, ")");
  fail(join(folder.path, "/config.ini says int8_mode = ", mode, ", and there is no manifest.json"),
       cause,
       int6 || ours ? "convert the model again with flexq-ft convert"
                    : "for FasterTransformer's float files remove int8_mode from config.ini and "
                      "choose --scheme when you run them");
}

ModelFolder open_by_ini(const std::string& path, const IniFile& ini) {
  ModelFolder folder = read_folder_ini(ini);
  folder.path = path;
  validate_config(folder.config, ini.name());
  refuse_quantized_without_manifest(folder);
  if (folder.tp == 0) folder.tp = tp_of_name(path);
  if (folder.tp == 0) folder.tp = count_rank_files(folder);
  // FT's rule for a second full table: GPT shares wte if there is none, LLaMA must say so.
  bool& tied = folder.config.tie_word_embeddings;
  const bool may_tie = tied || folder.config.architecture == Architecture::kOpt;
  tied = may_tie && !file_exists(folder, "model.lm_head.weight.bin");
  folder.shards = even_shards(folder.config, folder.tp);
  return folder;
}

std::string show(const std::vector<std::array<int64_t, 2>>& ranges) {
  std::string out;
  for (const auto& range : ranges) {
    out += join(out.empty() ? "" : ",", "[", range[0], ",", range[1], "]");
  }
  return "[" + out + "]";
}

void check_ranges(const std::string& where, const char* axis,
                  const std::vector<std::array<int64_t, 2>>& given,
                  const std::vector<std::array<int64_t, 2>>& wanted) {
  if (given == wanted) return;
  fail(join(where, ": tensor_parallel.", axis, " is ", show(given), ", and ", wanted.size(),
            " ranks hold ", show(wanted)));
}

bool is_cut(const ModelFolder& folder, const std::string& stem) {
  return std::find(folder.cut_groups.begin(), folder.cut_groups.end(), stem) !=
         folder.cut_groups.end();
}

// w6ax: the ranges of inter must meet, and fall on groups unless the manifest says they are cut.
void check_int6_inter(const ModelFolder& folder, const std::string& where) {
  const bool cut = is_cut(folder, folder.config.gated_ffn ? "mlp.down_proj" : "mlp.dense_4h_to_h");
  int64_t next = 0;
  for (const auto& range : folder.shards.inter) {
    if (range[0] != next || range[1] <= range[0]) {
      fail(join(where, ": tensor_parallel.inter has a gap or an overlap at ", range[0], " (", next,
                " expected): ", show(folder.shards.inter)));
    }
    next = range[1];
    if (next != folder.config.inter_size && next % flexq_kernels::kGroupSize != 0 && !cut) {
      fail(join(where, ": tensor_parallel.inter is cut at ", next,
                ", inside a group of 128, and cut_groups does not say so"));
    }
  }
  if (next != folder.config.inter_size) {
    fail(join(where, ": tensor_parallel.inter ends at ", next, ", and inter_size is ",
              folder.config.inter_size));
  }
}

void check_shards(const ModelFolder& folder, const std::string& where) {
  const ModelConfig& config = folder.config;
  if (folder.scheme == Scheme::kW6Ax) {
    check_int6_inter(folder, where);
    ModelConfig any_inter = config;  // the even split of it is not asked for
    any_inter.inter_size = folder.tp;
    const ShardRanges even = even_shards(any_inter, folder.tp);
    check_ranges(where, "heads", folder.shards.heads, even.heads);
    check_ranges(where, "kv_heads", folder.shards.kv_heads, even.kv_heads);
    const int64_t edge = config.num_heads / folder.tp * config.head_dim;
    if (folder.tp > 1 && edge % flexq_kernels::kGroupSize != 0 &&
        !is_cut(folder, "attention.dense")) {
      fail(join(where, ": the shards of attention.dense are cut at ", edge,
                ", inside a group of 128, and cut_groups does not say so"));
    }
    return;
  }
  const ShardRanges even = even_shards(config, folder.tp);
  check_ranges(where, "heads", folder.shards.heads, even.heads);
  check_ranges(where, "kv_heads", folder.shards.kv_heads, even.kv_heads);
  check_ranges(where, "inter", folder.shards.inter, even.inter);
}

std::string show(const FileEntry& entry) {
  std::string shape;
  for (const int64_t dim : entry.shape) shape += join(shape.empty() ? "" : ", ", dim);
  return join("[", shape, "] ", entry.dtype, " ", entry.layout, ", ", with_commas(entry.bytes),
              " bytes");
}

// The manifest lists exactly the files that its model has, each as the model needs it.
void check_file_list(const ModelFolder& folder, const std::string& where) {
  std::set<std::string> wanted;
  for (int rank = 0; rank < folder.tp; ++rank) {
    for (const WeightFile& file : rank_files(folder, rank)) {
      wanted.insert(file.name);
      const auto found = folder.files.find(file.name);
      if (found == folder.files.end()) {
        fail(join(where, ": files has no ", file.name, ", which the model needs"));
      }
      const FileEntry& entry = found->second;
      if (entry.shape != file.entry.shape || entry.dtype != file.entry.dtype ||
          entry.layout != file.entry.layout || entry.bytes != file.entry.bytes) {
        fail(join(where, ": files.", file.name, " is ", show(entry), "; the model needs ",
                  show(file.entry)));
      }
    }
  }
  for (const auto& [name, entry] : folder.files) {
    if (wanted.count(name) == 0) {
      fail(join(where, ": files has ", name, ", of which the model knows nothing"));
    }
  }
}

ModelFolder open_by_manifest(const std::string& path, const std::string& manifest) {
  ModelFolder folder = read_manifest(read_json(manifest, ErrorKind::kWeight));
  folder.path = path;
  validate_config(folder.config, manifest);
  check_shards(folder, manifest);
  check_file_list(folder, manifest);
  return folder;
}

}  // namespace

ShardRanges even_shards(const ModelConfig& config, int tp) {
  const int64_t kv = config.num_kv_heads;
  const auto require = [&](bool divides, const char* what, int64_t size) {
    if (!divides) fail(join(what, " ", size, " cannot be split on ", tp, " ranks"));
  };
  require(config.num_heads % tp == 0, "num_heads", config.num_heads);
  require(kv % tp == 0 || tp % kv == 0, "num_kv_heads", kv);
  require(config.inter_size % tp == 0, "inter_size", config.inter_size);
  ShardRanges out;
  for (int64_t rank = 0; rank < tp; ++rank) {
    const auto even = [&](int64_t size) -> std::array<int64_t, 2> {
      return {rank * size / tp, (rank + 1) * size / tp};
    };
    out.heads.push_back(even(config.num_heads));
    const int64_t first = rank * kv / tp;
    out.kv_heads.push_back(kv >= tp ? even(kv) : std::array<int64_t, 2>{first, first + 1});
    out.inter.push_back(even(config.inter_size));
  }
  return out;
}

ModelFolder open_model_folder(const std::string& path) {
  if (!is_folder(path)) {
    throw Error(ErrorKind::kConfig, join("there is no model folder ", path), {},
                "flexq-ft convert SOURCE OUT makes one; give OUT/<tp>-gpu");
  }
  const std::string manifest = path + "/manifest.json";
  const std::string ini_path = path + "/config.ini";
  struct stat info{};
  const bool has_manifest = ::stat(manifest.c_str(), &info) == 0;
  const bool has_ini = ::stat(ini_path.c_str(), &info) == 0;
  if (!has_manifest && !has_ini) {
    fail(join(path, " has neither manifest.json nor config.ini, so it is not a model folder"), {},
         "give the <tp>-gpu folder inside the converter's output");
  }
  if (!has_manifest) return open_by_ini(path, IniFile::read(ini_path, ErrorKind::kWeight));
  ModelFolder folder = open_by_manifest(path, manifest);
  if (has_ini) check_folder_ini_agrees(IniFile::read(ini_path, ErrorKind::kWeight), folder);
  return folder;
}

}  // namespace flexq_ft
