// Argument checks of the library: std::invalid_argument with the expression, both values and the
// message. Only for the ISA-independent files; it uses the standard library.
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

// FLEXQ_CHECK(k >= 1, "k ", k, " of …"): the message names the thing and the numbers.
#define FLEXQ_CHECK(cond, ...)                                                            \
  do {                                                                                    \
    if (!(cond)) throw std::invalid_argument(::flexq_kernels::detail::join(__VA_ARGS__)); \
  } while (0)
