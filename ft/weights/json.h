// A strict JSON reader (RFC 8259) for files that may come from anywhere: UTF-8 is checked,
// duplicate keys are refused, and size, depth and number of values are bounded.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ft/core/error.h"

namespace flexq_ft {

constexpr size_t kMaxJsonBytes = size_t{64} << 20;
constexpr int kMaxJsonDepth = 32;
constexpr size_t kMaxJsonValues = size_t{1} << 21;

struct JsonMember;

struct JsonValue {
  using Array = std::vector<JsonValue>;
  using Object = std::vector<JsonMember>;  // in the order of the file

  // int64_t for numbers that are written as integers and fit; double for the others.
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> data = nullptr;
  int line = 0;
  int column = 0;  // in bytes, from 1

  template <typename T>
  const T* get() const {
    return std::get_if<T>(&data);
  }
  bool is_null() const { return get<std::nullptr_t>() != nullptr; }
  const char* type_name() const;  // "an object", "a string", …
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

// A read file, and whose fault its errors are.
struct JsonDocument {
  std::string name;  // as errors show it
  ErrorKind kind = ErrorKind::kWeight;
  JsonValue root;

  // Throws Error{kind, "NAME:LINE:COLUMN: text"}.
  [[noreturn]] void fail(const JsonValue& at, const std::string& text) const;
};

JsonDocument parse_json(std::string_view text, std::string name,
                        ErrorKind kind = ErrorKind::kWeight);
JsonDocument read_json(const std::string& path, ErrorKind kind = ErrorKind::kWeight);

}  // namespace flexq_ft
