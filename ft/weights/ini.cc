#include "ft/weights/ini.h"

#include <algorithm>
#include <utility>

#include "ft/core/check.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

bool is_comment(char c) { return c == ';' || c == '#'; }

// Without a comment that follows a blank.
std::string_view strip_comment(std::string_view text) {
  for (size_t i = 1; i < text.size(); ++i) {
    if (is_comment(text[i]) && is_blank(text[i - 1])) return text.substr(0, i);
  }
  return text;
}

bool parse_hexadecimal(const std::string& text, int64_t* out) {
  const std::string lower = to_lower(text);
  if (lower.size() < 3 || lower.size() > 17 || lower.compare(0, 2, "0x") != 0) return false;
  int64_t value = 0;
  for (const char c : lower.substr(2)) {
    const size_t digit = std::string_view("0123456789abcdef").find(c);
    if (digit == std::string_view::npos) return false;
    value = value * 16 + static_cast<int64_t>(digit);
  }
  *out = value;
  return true;
}

}  // namespace

class IniParser {
 public:
  explicit IniParser(IniFile* file) : file_(file) {}

  void run(std::string_view text) {
    text = without_byte_order_mark(text);
    while (!text.empty()) {
      ++line_;
      const size_t end = text.find('\n');
      read_line(text.substr(0, end));
      if (end == std::string_view::npos) break;
      text.remove_prefix(end + 1);
    }
  }

 private:
  [[noreturn]] void fail(const std::string& text) const {
    throw Error(file_->kind_, join(file_->name_, ":", line_, ": ", text));
  }

  void read_line(std::string_view raw) {
    if (find_invalid_utf8(raw) != std::string_view::npos) fail("invalid UTF-8");
    if (raw.find('\0') != std::string_view::npos) fail("a zero byte");
    const std::string_view line = trim(raw);
    if (line.empty() || is_comment(line.front())) return;
    if (++lines_with_content_ > kMaxIniKeys) fail(join("more than ", kMaxIniKeys, " keys"));
    if (line.front() == '[') {
      open_section(line);
      return;
    }
    if (section_ == npos) fail("a key before the first [section]");
    const size_t separator = line.find_first_of("=:");
    if (separator == std::string_view::npos) fail("neither 'key = value' nor '[section]'");
    IniSection& section = file_->sections_[section_];
    if (is_blank(raw.front()) && has_previous_) {
      fail(join("the line is indented, which FasterTransformer reads as more of '",
                section.entries_.back().key, "'; remove the blanks before '",
                trim(line.substr(0, separator)), "'"));
    }
    add(&section, line, separator);
  }

  void open_section(std::string_view line) {
    const size_t close = line.find(']');
    if (close == std::string_view::npos) fail("a section without ']'");
    const std::string_view rest = trim(line.substr(close + 1));
    if (!rest.empty() && !is_comment(rest.front())) fail("text after a section's ']'");
    const std::string name = to_lower(trim(line.substr(1, close - 1)));
    if (name.empty()) fail("a section without a name");
    has_previous_ = false;
    const auto known = std::find_if(file_->sections_.begin(), file_->sections_.end(),
                                    [&](const IniSection& s) { return s.name() == name; });
    section_ = static_cast<size_t>(known - file_->sections_.begin());
    if (known == file_->sections_.end()) {
      file_->sections_.emplace_back(name, file_->name_, file_->kind_);
    }
  }

  void add(IniSection* section, std::string_view line, size_t separator) {
    IniEntry entry;
    entry.key = to_lower(trim(line.substr(0, separator)));
    // Not trimmed before: the blank that opens a comment may be the one after the separator.
    entry.value = std::string(trim(strip_comment(line.substr(separator + 1))));
    entry.line = line_;
    if (entry.key.empty()) fail("a value without a key");
    if (const IniEntry* first = section->find(entry.key)) {
      fail(join("'", entry.key, "' was already given on line ", first->line, " (", first->value,
                " and ", entry.value, ")"));
    }
    section->entries_.push_back(std::move(entry));
    has_previous_ = true;
  }

  static constexpr size_t npos = static_cast<size_t>(-1);
  IniFile* file_;
  size_t section_ = npos;
  bool has_previous_ = false;
  int line_ = 0;
  int lines_with_content_ = 0;
};

IniSection::IniSection(std::string name, std::string file, ErrorKind kind)
    : name_(std::move(name)), file_(std::move(file)), kind_(kind) {}

const IniEntry* IniSection::find(std::string_view key) const {
  for (const IniEntry& entry : entries_) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

void IniSection::fail(const std::string& key, const std::string& text) const {
  const IniEntry* entry = find(key);
  const std::string line = entry == nullptr ? "" : join(":", entry->line);
  throw Error(kind_, join(file_, line, ": ", key, " ", text));
}

const IniEntry& IniSection::required(const std::string& key) const {
  asked_.insert(key);
  const IniEntry* entry = find(key);
  if (entry == nullptr) {
    std::vector<std::string> given;
    for (const IniEntry& other : entries_) given.push_back(other.key);
    throw Error(kind_, join(file_, ": section [", name_, "] has no key '", key, "'",
                            did_you_mean(key, given)));
  }
  return *entry;
}

std::string IniSection::get_string(const std::string& key) const { return required(key).value; }

int64_t IniSection::get_int(const std::string& key) const {
  const std::string& text = required(key).value;
  int64_t value = 0;
  if (!parse_integer(text, &value) && !parse_hexadecimal(text, &value)) {
    fail(key, join("is '", text, "', which is not an integer"));
  }
  return value;
}

double IniSection::get_float(const std::string& key) const {
  const std::string& text = required(key).value;
  double value = 0;
  if (!parse_number(text, &value)) fail(key, join("is '", text, "', which is not a number"));
  return value;
}

bool IniSection::get_bool(const std::string& key) const {
  const std::string text = to_lower(required(key).value);
  for (const char* yes : {"true", "yes", "on", "1"}) {
    if (text == yes) return true;
  }
  for (const char* no : {"false", "no", "off", "0"}) {
    if (text == no) return false;
  }
  fail(key, join("is '", required(key).value, "', allowed are 1 and 0, true and false"));
}

std::string IniSection::get_string(const std::string& key, const std::string& fallback) const {
  ignore(key);
  return has(key) ? get_string(key) : fallback;
}

int64_t IniSection::get_int(const std::string& key, int64_t fallback) const {
  ignore(key);
  return has(key) ? get_int(key) : fallback;
}

double IniSection::get_float(const std::string& key, double fallback) const {
  ignore(key);
  return has(key) ? get_float(key) : fallback;
}

bool IniSection::get_bool(const std::string& key, bool fallback) const {
  ignore(key);
  return has(key) ? get_bool(key) : fallback;
}

std::vector<IniEntry> IniSection::unread() const {
  std::vector<IniEntry> out;
  for (const IniEntry& entry : entries_) {
    if (asked_.count(entry.key) == 0) out.push_back(entry);
  }
  return out;
}

void IniSection::refuse_unread() const {
  const std::vector<IniEntry> left = unread();
  if (left.empty()) return;
  const std::vector<std::string> known(asked_.begin(), asked_.end());
  std::string more;
  for (size_t i = 1; i < left.size(); ++i) {
    more += join(more.empty() ? "" : "\n", "line ", left[i].line, ": unknown key '", left[i].key,
                 "'", did_you_mean(left[i].key, known));
  }
  throw Error(kind_,
              join(file_, ":", left[0].line, ": unknown key '", left[0].key, "' in [", name_, "]",
                   did_you_mean(left[0].key, known)),
              more);
}

IniFile IniFile::read(const std::string& path, ErrorKind kind) {
  return parse(read_text_file(path, kMaxIniBytes, kind), path, kind);
}

IniFile IniFile::parse(std::string_view text, std::string name, ErrorKind kind) {
  IniFile file;
  file.name_ = std::move(name);
  file.kind_ = kind;
  IniParser(&file).run(text);
  return file;
}

const IniSection* IniFile::find(std::string_view section) const {
  const std::string wanted = to_lower(section);
  for (const IniSection& candidate : sections_) {
    if (candidate.name() == wanted) return &candidate;
  }
  return nullptr;
}

const IniSection& IniFile::section(const std::string& section) const {
  const IniSection* found = find(section);
  if (found != nullptr) return *found;
  std::vector<std::string> names;
  for (const IniSection& candidate : sections_) names.push_back(candidate.name());
  throw Error(kind_,
              join(name_, ": there is no section [", to_lower(section), "]",
                   did_you_mean(to_lower(section), names)),
              names.empty() ? "" : join("sections in the file: ", join_names(names)));
}

}  // namespace flexq_ft
