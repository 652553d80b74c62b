// OPT, pre-LN: LayerNorm, learned positions, fc1 and fc2 (FasterTransformer's ParallelGptDecoder).
#include "ft/models/wiring.h"

namespace flexq_ft {

const DecoderWiring kOptWiring = {NormType::kLayer, /*learned_positions=*/true,
                                  /*gated_ffn=*/false};

}  // namespace flexq_ft
