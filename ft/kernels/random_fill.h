// Random numbers that depend on a key and an index alone, for weights without a checkpoint: the
// same on every device, in any order.
#pragma once

#include <cstdint>

#include "ft/core/host_device.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

struct RandomFill {
  uint64_t key = 0;
  float center = 0.0f;
  float spread = 1.0f;  // of floats: uniform in [center - spread, center + spread)
};

// out[i] of any float type = number first + i of the fill; int8: uniform in -127 … 127;
// uint8: any byte.
void invokeRandomFill(Tensor out, const RandomFill& fill, int64_t first, Stream stream);

namespace detail {

// Four numbers of 16 bits (SplitMix64's finaliser): index / 4 picks the word, index % 4 the number.
FLEXQ_FT_HOST_DEVICE uint64_t random_word(uint64_t key, uint64_t word) {
  uint64_t x = key + (word + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

FLEXQ_FT_HOST_DEVICE uint32_t random_bits(uint64_t word, int part) {
  return static_cast<uint32_t>(word >> (16 * part)) & 0xffffu;
}

// In [-1, 1), exact.
FLEXQ_FT_HOST_DEVICE float random_unit(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>(bits) - 32768) * 0x1p-15f;
}

FLEXQ_FT_HOST_DEVICE int8_t random_code(uint32_t bits) {
  return static_cast<int8_t>(static_cast<int32_t>((bits * 255u) >> 16) - 127);
}

FLEXQ_FT_HOST_DEVICE uint8_t random_byte(uint32_t bits) { return static_cast<uint8_t>(bits >> 8); }

}  // namespace detail

}  // namespace flexq_ft
