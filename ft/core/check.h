// Checks that throw Error{kInternal} with the expression, both values and the message.
// Faults that a user can cause are not checks: throw an Error of the right kind, with a hint.
#pragma once

#include <sstream>
#include <string>

#include "ft/core/error.h"

namespace flexq_ft::detail {

template <typename... Args>
std::string join(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

[[noreturn]] inline void fail_check(const char* file, int line, const std::string& what,
                                    const std::string& message) {
  throw Error(ErrorKind::kInternal,
              join("check failed: ", what, message.empty() ? "" : ": ", message),
              join("at ", file, ":", line));
}

}  // namespace flexq_ft::detail

#define FLEXQ_FT_CHECK(cond, ...)                                            \
  do {                                                                       \
    if (!(cond)) {                                                           \
      ::flexq_ft::detail::fail_check(__FILE__, __LINE__, #cond,              \
                                     ::flexq_ft::detail::join(__VA_ARGS__)); \
    }                                                                        \
  } while (0)

#define FLEXQ_FT_CHECK_OP(a, op, b, ...)                                                   \
  do {                                                                                     \
    const auto& check_a = (a);                                                             \
    const auto& check_b = (b);                                                             \
    if (!(check_a op check_b)) {                                                           \
      ::flexq_ft::detail::fail_check(                                                      \
          __FILE__, __LINE__,                                                              \
          ::flexq_ft::detail::join(#a " " #op " " #b " (", check_a, " vs ", check_b, ")"), \
          ::flexq_ft::detail::join(__VA_ARGS__));                                          \
    }                                                                                      \
  } while (0)

#define FLEXQ_FT_CHECK_EQ(a, b, ...) FLEXQ_FT_CHECK_OP(a, ==, b, __VA_ARGS__)
#define FLEXQ_FT_CHECK_LT(a, b, ...) FLEXQ_FT_CHECK_OP(a, <, b, __VA_ARGS__)
#define FLEXQ_FT_CHECK_LE(a, b, ...) FLEXQ_FT_CHECK_OP(a, <=, b, __VA_ARGS__)
