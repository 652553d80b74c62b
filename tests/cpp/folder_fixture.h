// Model folders written on the spot: configs, files of known values, config.ini, manifest.json.
#pragma once

#include <cstdint>
#include <string>

#include "ft/weights/model_folder.h"
#include "ft/weights/weight_files.h"

namespace flexq_test {

using namespace flexq_ft;

// A folder under the system's temporary one, deleted with the object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

void write_bytes(const std::string& path, const void* data, size_t bytes);
void write_text(const std::string& path, const std::string& text);
std::string read_bytes(const std::string& path);

// Small, with sizes that fit no block: hidden 48, 4 heads of 12, 2 KV heads, inter 40, vocab 37.
ModelConfig small_llama();
ModelConfig small_opt();

// A folder struct at path with even shards (or the given ranges of inter), not yet written.
ModelFolder make_folder(const std::string& path, const ModelConfig& config, Scheme scheme,
                        DataType dtype, int tp);

// The number at position i of a file: small, different in every file, exact in bf16.
float file_value(const std::string& name, int64_t i);

// Every file of every rank: floats and scales are file_value (scales: its magnitude + 1/64), int8
// and int6 codes too (times 64). Fills folder->files.
void write_weight_files(ModelFolder* folder);

std::string manifest_text(const ModelFolder& folder);
std::string ini_text(const ModelFolder& folder);

}  // namespace flexq_test
