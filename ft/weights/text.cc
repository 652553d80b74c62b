#include "ft/weights/text.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <locale>
#include <numeric>
#include <sstream>

#include "ft/core/check.h"

namespace flexq_ft {

using detail::join;

namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Skips digits from i on; true if there was one.
bool skip_digits(std::string_view text, size_t* i) {
  const size_t begin = *i;
  while (*i < text.size() && is_digit(text[*i])) ++*i;
  return *i > begin;
}

bool has_number_grammar(std::string_view text) {
  size_t i = 0;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  bool digits = skip_digits(text, &i);
  if (i < text.size() && text[i] == '.') {
    ++i;
    digits = skip_digits(text, &i) || digits;
  }
  if (!digits) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    if (!skip_digits(text, &i)) return false;
  }
  return i == text.size();
}

// Bytes of the UTF-8 sequence at the start of text, or 0 if there is none that is valid.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0u) != 0x80) return 0;
  }
  const unsigned second = byte(1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0)) return 0;
  if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second >= 0x90)) return 0;
  return length;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// The name within a small edit distance of word, or "" if none is that near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& names) {
  constexpr size_t kLongest = 64;
  if (word.size() > kLongest) return {};
  std::string nearest;
  size_t best = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : names) {
    if (name.size() > kLongest || name == word) continue;
    const size_t distance = edit_distance(word, name);
    if (distance < best && distance < word.size()) {
      best = distance;
      nearest = name;
    }
  }
  return nearest;
}

}  // namespace

std::string read_text_file(const std::string& path, size_t max_bytes, ErrorKind kind) {
  // Without O_NONBLOCK a named pipe in the place of a file would hang the reader.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw Error(kind, join("cannot open ", path), std::strerror(errno));
  struct stat info{};
  if (::fstat(file.fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    throw Error(kind, join(path, " is not a regular file"));
  }
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    throw Error(kind, join(path, " holds ", with_commas(static_cast<uint64_t>(info.st_size)),
                           " bytes; at most ", with_commas(max_bytes), " are read"));
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(file.fd, &text[done], text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(kind, join("cannot read ", path), std::strerror(errno));
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  text.resize(done);
  return text;
}

std::string_view without_byte_order_mark(std::string_view text) {
  return text.substr(0, 3) == "\xef\xbb\xbf" ? text.substr(3) : text;
}

size_t find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

bool parse_integer(std::string_view text, int64_t* out) {
  const bool negative = !text.empty() && text[0] == '-';
  const std::string_view digits = text.substr(negative ? 1 : 0);
  if (digits.empty() || (digits.size() > 1 && digits[0] == '0')) return false;
  int64_t value = 0;
  for (const char c : digits) {
    if (!is_digit(c)) return false;
    const int64_t digit = negative ? -(c - '0') : c - '0';
    if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, digit, &value)) {
      return false;
    }
  }
  *out = value;
  return true;
}

bool parse_number(std::string_view text, double* out) {
  if (!has_number_grammar(text)) return false;
  std::istringstream in{std::string(text)};
  in.imbue(std::locale::classic());
  return static_cast<bool>(in >> *out) && std::isfinite(*out);
}

std::string to_lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string with_commas(uint64_t value) {
  std::string out = std::to_string(value);
  for (size_t i = out.size(); i > 3;) {
    i -= 3;
    out.insert(i, ",");
  }
  return out;
}

std::string join_names(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& names) {
  const std::string nearest = nearest_name(word, names);
  return nearest.empty() ? std::string() : "; did you mean '" + nearest + "'?";
}

}  // namespace flexq_ft
