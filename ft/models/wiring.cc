#include "ft/models/wiring.h"

#include "ft/core/check.h"

namespace flexq_ft {

const DecoderWiring& wiring_of(const ModelConfig& config) {
  const DecoderWiring& wiring =
      config.architecture == Architecture::kOpt ? kOptWiring : kLlamaWiring;
  if (config.norm != wiring.norm || config.gated_ffn != wiring.gated_ffn ||
      config.rope.has_value() == wiring.learned_positions) {
    throw Error(ErrorKind::kWeight,
                detail::join("the model's norm, positions or feed-forward are not those of its "
                             "architecture: ",
                             config));
  }
  return wiring;
}

}  // namespace flexq_ft
