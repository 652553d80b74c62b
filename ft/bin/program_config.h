// What the FT programs are asked to do: FT's INI, read strictly, and brought together with the
// model folder. Faults are Error{kConfig}; those in a file begin with FILE:LINE.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ft/bin/csv.h"
#include "ft/decoding/engine.h"
#include "ft/weights/ini.h"

namespace flexq_ft {

// In what the two programs differ.
struct ProgramStyle {
  const char* name;
  const char* default_ini;
  Architecture architecture;
  const char* sampling_section;  // where FT's program has top_k, temperature, …
  const char* separator;         // after each id in the file `out`
  bool device_line_first;        // "Device …" before "P0 is running with …"
};

extern const ProgramStyle kLlamaExample;
extern const ProgramStyle kMultiGpuGptExample;

struct ProgramConfig {
  std::string model_dir;
  int64_t tensor_para_size = 1;
  std::optional<DataType> dtype;  // absent: the folder's
  std::optional<Scheme> scheme;   // absent: the folder's
  std::optional<Device> device;   // absent: the GPU where it can (program_device.h)
  int64_t max_seq_len = 0;        // 0: the model's
  int64_t batch_size = 0;         // 0: every line of start_ids.csv
  int64_t request_output_len = 0;
  int64_t total_output_len = 0;  // prompt and output; wins if it is longer than the longest prompt
  int64_t timed_iterations = 1;
  SamplingParams sampling;  // without max_tokens and words
};

// The INI alone.
ProgramConfig read_program_config(const IniFile& ini, const ProgramStyle& style);

// The architecture, and every size that the INI's model section gives, must be the folder's.
void check_model_section(const IniFile& ini, const ProgramStyle& style, const ModelFolder& folder);

// What the programs run: as many rows as the batch, each up to max_tokens new ids.
struct ProgramRequest {
  TokenRows prompts;
  SamplingParams sampling;
  int64_t total_len = 0;  // of a line of `out`
  int64_t pad_id = 0;
};

ProgramRequest make_request(const ProgramConfig& config, const ModelFolder& folder,
                            const std::string& start_ids_path);

EngineOptions make_engine_options(const ProgramConfig& config, const ModelFolder& folder,
                                  const ProgramRequest& request);

}  // namespace flexq_ft
