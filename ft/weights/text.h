// What the readers of text files share: bounded reading, strict numbers, UTF-8, nearest names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ft/core/error.h"

namespace flexq_ft {

// The whole of a regular file of at most max_bytes; otherwise an Error of that kind.
std::string read_text_file(const std::string& path, size_t max_bytes, ErrorKind kind);

// Without the UTF-8 byte order mark that some editors put in front of a text.
std::string_view without_byte_order_mark(std::string_view text);

// Offset of the first byte that is not UTF-8 (overlong forms and surrogates are not), or npos.
size_t find_invalid_utf8(std::string_view text);

// Decimal digits with an optional minus sign, no leading zeros; false if it is not that or does not
// fit.
bool parse_integer(std::string_view text, int64_t* out);

// A finite decimal number, read alike in every locale: -1, 1e-05, .5, 10000.0.
bool parse_number(std::string_view text, double* out);

std::string to_lower(std::string_view text);              // ASCII
std::string with_commas(uint64_t value);                  // 16,777,216
std::string join_names(const std::vector<std::string>&);  // a, b, c

// "; did you mean 'x'?" with the name within a small edit distance of word; "" if none is that
// near.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& names);

}  // namespace flexq_ft
