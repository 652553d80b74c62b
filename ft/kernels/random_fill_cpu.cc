#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

// Calls put(i, bits) for every element of the tensor.
template <typename Put>
void for_bits(int64_t count, uint64_t key, int64_t first, const Put& put) {
  flexq_kernels::parallel_ranges(count, count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<uint64_t>(first + i);
      const uint64_t word = detail::random_word(key, index / 4);
      put(i, detail::random_bits(word, static_cast<int>(index % 4)));
    }
  });
}

}  // namespace

void random_fill(Tensor out, const RandomFill& fill, int64_t first) {
  if (out.dtype() == DataType::kInt8) {
    int8_t* codes = static_cast<int8_t*>(out.raw());
    for_bits(out.count(), fill.key, first,
             [&](int64_t i, uint32_t bits) { codes[i] = detail::random_code(bits); });
    return;
  }
  if (out.dtype() == DataType::kUint8) {
    uint8_t* bytes = static_cast<uint8_t*>(out.raw());
    for_bits(out.count(), fill.key, first,
             [&](int64_t i, uint32_t bits) { bytes[i] = detail::random_byte(bits); });
    return;
  }
  dispatch_float(out.dtype(), [&](auto tag) {
    using T = decltype(tag);
    T* values = static_cast<T*>(out.raw());
    for_bits(out.count(), fill.key, first, [&](int64_t i, uint32_t bits) {
      values[i] = from_float<T>(fill.center + fill.spread * detail::random_unit(bits));
    });
  });
}

}  // namespace flexq_ft::cpu
