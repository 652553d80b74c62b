// What tells one decoder-only architecture from another: a table each, in <architecture>.cc.
// To add one: a value of Architecture, a table, and its line in wiring.cc.
#pragma once

#include "ft/core/model_config.h"

namespace flexq_ft {

struct DecoderWiring {
  NormType norm = NormType::kRms;
  bool learned_positions = false;  // else rotary
  bool gated_ffn = true;           // else one up product
};

extern const DecoderWiring kLlamaWiring;
extern const DecoderWiring kOptWiring;

// Throws Error{kWeight} if the configuration is not one that the architecture's table describes.
const DecoderWiring& wiring_of(const ModelConfig& config);

}  // namespace flexq_ft
