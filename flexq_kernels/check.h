// Argument checks of the library: std::invalid_argument with a message that names the thing and all
// its numbers. Not for *_simd.cc files: it uses the standard library (flexq_kernels/cpu/isa.h).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace flexq_kernels::detail {

template <typename... Args>
std::string join(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace flexq_kernels::detail

#define FLEXQ_CHECK(cond, ...)                                                            \
  do {                                                                                    \
    if (!(cond)) throw std::invalid_argument(::flexq_kernels::detail::join(__VA_ARGS__)); \
  } while (0)
