// What was asked of an engine, checked against its folder and completed.
#pragma once

#include "ft/decoding/engine.h"

namespace flexq_ft {

// The model folder; with synthetic weights, model_dir may be an INI: the folder that it describes,
// for so many ranks.
ModelFolder open_model(const std::string& model_dir, const EngineOptions& asked, int ranks);

// Throws Error{kConfig} naming the option, what it is and what the folder or the GPU allows, and
// Error{kDevice} if there is no GPU. Every field of the result is set. ranks: how many share this
// host's cores.
EngineOptions resolve_options(const EngineOptions& asked, const ModelFolder& folder, int ranks);

// Throws Error{kConfig} unless the folder was made for so many ranks.
void check_ranks(const ModelFolder& folder, int ranks);

// The longest sequence that the model can hold: its positions, or its sliding window if shorter.
int64_t context_limit(const ModelConfig& config);

}  // namespace flexq_ft
