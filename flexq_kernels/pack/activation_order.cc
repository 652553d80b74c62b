#include "flexq_kernels/activation_order.h"

#include <cstring>

#include "flexq_kernels/check.h"
#include "flexq_kernels/pack.h"

namespace flexq_kernels {

namespace {

constexpr int kWords = kGroupSize / 4;

// move(to, from, w): word w of one group, through a copy of it.
template <typename Move>
void reorder(int8_t* to, const int8_t* from, int64_t groups, const Move& move) {
  FLEXQ_CHECK(groups >= 0 && groups <= kMaxExtent, "cannot reorder ", groups,
              " groups of codes: 0 … ", kMaxExtent);
  FLEXQ_CHECK(groups == 0 || (to != nullptr && from != nullptr), groups,
              " groups of codes without memory");
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t source[kWords], target[kWords];
    std::memcpy(source, from + g * kGroupSize, sizeof(source));
    for (int w = 0; w < kWords; ++w) move(target, source, w);
    std::memcpy(to + g * kGroupSize, target, sizeof(target));
  }
}

}  // namespace

void to_fragment_order(int8_t* fragment, const int8_t* natural, int64_t groups) {
  reorder(fragment, natural, groups, [](uint32_t* target, const uint32_t* source, int w) {
    target[fragment_word(w)] = source[w];
  });
}

void to_natural_order(int8_t* natural, const int8_t* fragment, int64_t groups) {
  reorder(natural, fragment, groups, [](uint32_t* target, const uint32_t* source, int w) {
    target[w] = source[fragment_word(w)];
  });
}

}  // namespace flexq_kernels
