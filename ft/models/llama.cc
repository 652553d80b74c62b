// LLaMA and what is built like it (Mistral, Qwen2): RMSNorm, rotary positions, gated feed-forward.
// Grouped heads, biases, the activation and the rotary scaling are numbers of the ModelConfig.
#include "ft/models/wiring.h"

namespace flexq_ft {

const DecoderWiring kLlamaWiring = {NormType::kRms, /*learned_positions=*/false,
                                    /*gated_ffn=*/true};

}  // namespace flexq_ft
