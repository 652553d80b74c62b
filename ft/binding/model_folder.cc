// ModelFolder and ModelConfig, read only.
#include "ft/weights/model_folder.h"

#include <pybind11/stl.h>

#include <sstream>

#include "ft/binding/module.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

py::object rope_to_python(const ModelConfig& config) {
  if (!config.rope) return py::none();
  py::dict out;
  out["theta"] = config.rope->theta;
  out["type"] = to_string(config.rope->type);
  out["factor"] = config.rope->factor;
  out["low_freq_factor"] = config.rope->low_freq_factor;
  out["high_freq_factor"] = config.rope->high_freq_factor;
  out["original_max_positions"] = config.rope->original_max_positions;
  return std::move(out);
}

void bind_config(py::module_& module) {
  py::class_<ModelConfig> config(module, "ModelConfig", "The numbers of one model.");
  for (const ConfigInteger& integer : config_integers()) {
    const auto field = integer.field;
    config.def_property_readonly(integer.name,
                                 [field](const ModelConfig& self) { return self.*field; });
  }
  config.def_readonly("name", &ModelConfig::name)
      .def_property_readonly("architecture",
                             [](const ModelConfig& self) { return to_string(self.architecture); })
      .def_property_readonly("norm", [](const ModelConfig& self) { return to_string(self.norm); })
      .def_readonly("norm_eps", &ModelConfig::norm_eps)
      .def_property_readonly("activation",
                             [](const ModelConfig& self) { return to_string(self.activation); })
      .def_readonly("gated_ffn", &ModelConfig::gated_ffn)
      .def_property_readonly("rope", &rope_to_python)
      .def_readonly("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def_readonly("qkv_bias", &ModelConfig::qkv_bias)
      .def_readonly("dense_bias", &ModelConfig::dense_bias)
      .def_readonly("ffn_bias", &ModelConfig::ffn_bias)
      .def_readonly("sliding_window", &ModelConfig::sliding_window)
      .def_readonly("bos_id", &ModelConfig::bos_id)
      .def_readonly("eos_ids", &ModelConfig::eos_ids)
      .def("__repr__", [](const ModelConfig& self) {
        std::ostringstream out;
        out << self;
        return out.str();
      });
}

}  // namespace

void bind_model_folder(py::module_& module) {
  bind_config(module);
  py::class_<ShardRanges>(module, "ShardRanges", "What each rank holds, as [begin, end) per rank.")
      .def_readonly("heads", &ShardRanges::heads)
      .def_readonly("kv_heads", &ShardRanges::kv_heads)
      .def_readonly("inter", &ShardRanges::inter);
  py::class_<FileEntry>(module, "FileEntry", "One file as manifest.json describes it.")
      .def_readonly("shape", &FileEntry::shape)
      .def_readonly("dtype", &FileEntry::dtype)
      .def_readonly("layout", &FileEntry::layout)
      .def_readonly("bytes", &FileEntry::bytes)
      .def_readonly("xxh3_128", &FileEntry::xxh3_128);
  py::class_<ModelFolder>(module, "ModelFolder", "A <tp>-gpu folder, opened and validated.")
      .def_readonly("path", &ModelFolder::path)
      .def_readonly("has_manifest", &ModelFolder::has_manifest)
      .def_readonly("config", &ModelFolder::config)
      .def_property_readonly("scheme",
                             [](const ModelFolder& self) { return to_string(self.scheme); })
      .def_property_readonly("dtype", [](const ModelFolder& self) { return to_string(self.dtype); })
      .def_readonly("policy", &ModelFolder::policy)
      .def_property_readonly("lm_head",
                             [](const ModelFolder& self) { return to_string(self.lm_head); })
      .def_readonly("tp", &ModelFolder::tp)
      .def_readonly("shards", &ModelFolder::shards)
      .def_readonly("cut_groups", &ModelFolder::cut_groups)
      .def_readonly("files", &ModelFolder::files);
  module.def("open_model_folder", &open_model_folder, py::arg("path"),
             "Reads config.ini and manifest.json of a folder and checks all that they say. "
             "WeightError for a fault of the folder, ConfigError where there is none.");
}

}  // namespace flexq_ft
