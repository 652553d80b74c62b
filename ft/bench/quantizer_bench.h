// What quantising the activations of a W6Ax product costs on the current GPU: the quantiser alone,
// and the ops that quantise what they make beside the same ops without.
#pragma once

#include <cstdint>

namespace flexq_ft {

// Microseconds of one launch in a graph of dependent launches; operands in the L2.
struct QuantizerTimes {
  double alone = 0;  // fp16 [m, k] -> codes and scales
  double norm = 0, norm_and_codes = 0;
  double activation = 0, activation_and_codes = 0;  // SiLU of a gate times up, of 2 k columns
};

// Throws Error{kDevice} without a GPU.
QuantizerTimes measure_quantizers(int64_t m, int64_t k, int act_bits, int launches, int replays);

}  // namespace flexq_ft
