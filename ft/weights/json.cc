#include "ft/weights/json.h"

#include <algorithm>
#include <utility>

#include "ft/core/check.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

void append_utf8(std::string* out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3f));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

class Parser {
 public:
  Parser(std::string_view text, JsonDocument* document) : text_(text), document_(document) {}

  void run() {
    const size_t bad = find_invalid_utf8(text_);
    if (bad != std::string_view::npos) fail_at(bad, "invalid UTF-8");
    skip_blanks();
    document_->root = value(0);
    skip_blanks();
    if (pos_ < text_.size()) fail("text after the end of the document");
  }

 private:
  [[noreturn]] void fail(const std::string& text) const { fail_at(pos_, text); }

  [[noreturn]] void fail_at(size_t pos, const std::string& text) const {
    const std::string_view before = text_.substr(0, pos);
    const size_t newline = before.rfind('\n');
    JsonValue at;
    at.line = 1 + static_cast<int>(std::count(before.begin(), before.end(), '\n'));
    at.column = static_cast<int>(newline == std::string_view::npos ? pos + 1 : pos - newline);
    document_->fail(at, text);
  }

  bool at_end() const { return pos_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[pos_]; }

  // Newlines are legal between tokens only, so this is where lines are counted.
  void skip_blanks() {
    for (; !at_end(); ++pos_) {
      const char c = text_[pos_];
      if (c == '\n') {
        ++line_;
        line_begin_ = pos_ + 1;
      } else if (c != ' ' && c != '\t' && c != '\r') {
        return;
      }
    }
  }

  bool take(char c) {
    if (at_end() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }

  JsonValue value(int depth) {
    if (++values_ > kMaxJsonValues) fail(join("more than ", kMaxJsonValues, " values"));
    JsonValue out;
    out.line = line_;
    out.column = static_cast<int>(pos_ - line_begin_ + 1);
    const char c = peek();
    if (c == '{' || c == '[') {
      if (depth >= kMaxJsonDepth) fail(join("nested deeper than ", kMaxJsonDepth, " levels"));
      ++pos_;
      if (c == '{') {
        out.data = object(depth + 1);
      } else {
        out.data = array(depth + 1);
      }
    } else if (c == '"') {
      out.data = string();
    } else if (c == '-' || (c >= '0' && c <= '9')) {
      number(&out);
    } else {
      word(&out);
    }
    return out;
  }

  void word(JsonValue* out) {
    const std::string_view rest = text_.substr(pos_);
    const auto is = [&](std::string_view name) { return rest.substr(0, name.size()) == name; };
    if (is("true")) {
      out->data = true;
      pos_ += 4;
    } else if (is("false")) {
      out->data = false;
      pos_ += 5;
    } else if (is("null")) {
      out->data = nullptr;
      pos_ += 4;
    } else {
      fail(at_end() ? "the text ends where a value should be" : "not a JSON value");
    }
  }

  JsonValue::Array array(int depth) {
    JsonValue::Array out;
    skip_blanks();
    if (take(']')) return out;
    while (true) {
      skip_blanks();
      out.push_back(value(depth));
      skip_blanks();
      if (take(']')) return out;
      if (!take(',')) fail("',' or ']' expected");
    }
  }

  JsonValue::Object object(int depth) {
    JsonValue::Object out;
    skip_blanks();
    if (take('}')) return out;
    while (true) {
      skip_blanks();
      if (peek() != '"') fail("a key in quotes expected");
      std::string key = string();
      skip_blanks();
      if (!take(':')) fail("':' expected");
      skip_blanks();
      out.push_back({std::move(key), value(depth)});
      skip_blanks();
      if (take('}')) break;
      if (!take(',')) fail("',' or '}' expected");
    }
    refuse_duplicates(out);
    return out;
  }

  void refuse_duplicates(const JsonValue::Object& object) const {
    std::vector<const JsonMember*> members;
    members.reserve(object.size());
    for (const JsonMember& member : object) members.push_back(&member);
    std::stable_sort(members.begin(), members.end(),
                     [](const JsonMember* a, const JsonMember* b) { return a->key < b->key; });
    const auto twice = std::adjacent_find(
        members.begin(), members.end(),
        [](const JsonMember* a, const JsonMember* b) { return a->key == b->key; });
    if (twice == members.end()) return;
    document_->fail(twice[1]->value, join("key '", twice[1]->key, "' was already given on line ",
                                          twice[0]->value.line));
  }

  std::string string() {
    ++pos_;
    std::string out;
    while (true) {
      if (at_end()) fail("the text ends inside a string");
      const char c = text_[pos_];
      if (static_cast<unsigned char>(c) < 0x20) fail("control character in a string");
      ++pos_;
      if (c == '"') return out;
      if (c == '\\') {
        escape(&out);
      } else {
        out.push_back(c);
      }
    }
  }

  void escape(std::string* out) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt";
    static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    const char c = peek();
    if (c != 'u') {
      const size_t i = at_end() ? std::string_view::npos : kFrom.find(c);
      if (i == std::string_view::npos) fail("unknown escape in a string");
      ++pos_;
      out->push_back(kTo[i]);
      return;
    }
    ++pos_;
    uint32_t code = hex4();
    if (code >= 0xd800 && code < 0xdc00) {
      if (!take('\\') || !take('u')) fail("half of a surrogate pair");
      const uint32_t low = hex4();
      if (low < 0xdc00 || low > 0xdfff) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code <= 0xdfff) {
      fail("half of a surrogate pair");
    }
    append_utf8(out, code);
  }

  uint32_t hex4() {
    static constexpr std::string_view kDigits = "0123456789abcdef";
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const std::string digit = to_lower(text_.substr(std::min(pos_, text_.size()), 1));
      const size_t value = digit.empty() ? std::string_view::npos : kDigits.find(digit);
      if (value == std::string_view::npos) fail("four hexadecimal digits expected after \\u");
      code = code * 16 + static_cast<uint32_t>(value);
      ++pos_;
    }
    return code;
  }

  bool digits() {
    const size_t begin = pos_;
    while (peek() >= '0' && peek() <= '9') ++pos_;
    return pos_ > begin;
  }

  void number(JsonValue* out) {
    const size_t begin = pos_;
    take('-');
    if (!take('0') && !digits()) fail("a digit expected");
    bool integer = true;
    if (take('.')) {
      integer = false;
      if (!digits()) fail("a digit expected after '.'");
    }
    if (peek() == 'e' || peek() == 'E') {
      integer = false;
      ++pos_;
      if (!take('-')) take('+');
      if (!digits()) fail("a digit expected in the exponent");
    }
    const std::string_view text = text_.substr(begin, pos_ - begin);
    int64_t exact = 0;
    double rounded = 0;
    if (integer && parse_integer(text, &exact)) {
      out->data = exact;
    } else if (parse_number(text, &rounded)) {
      out->data = rounded;
    } else {
      fail_at(begin, "number out of range");
    }
  }

  std::string_view text_;
  JsonDocument* document_;
  size_t pos_ = 0;
  size_t values_ = 0;
  int line_ = 1;
  size_t line_begin_ = 0;
};

}  // namespace

const char* JsonValue::type_name() const {
  static constexpr const char* kNames[] = {"null",     "a boolean", "an integer", "a number",
                                           "a string", "an array",  "an object"};
  return kNames[data.index()];
}

void JsonDocument::fail(const JsonValue& at, const std::string& text) const {
  throw Error(kind, join(name, ":", at.line, ":", at.column, ": ", text));
}

JsonDocument parse_json(std::string_view text, std::string name, ErrorKind kind) {
  JsonDocument document{std::move(name), kind, {}};
  if (text.size() > kMaxJsonBytes) {
    throw Error(kind, join(document.name, " holds ", with_commas(text.size()), " bytes; at most ",
                           with_commas(kMaxJsonBytes), " are read"));
  }
  Parser(text, &document).run();
  return document;
}

JsonDocument read_json(const std::string& path, ErrorKind kind) {
  return parse_json(read_text_file(path, kMaxJsonBytes, kind), path, kind);
}

}  // namespace flexq_ft
