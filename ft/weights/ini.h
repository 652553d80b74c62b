// FasterTransformer's INI grammar, read strictly: for a folder's config.ini and for the programs'
// own files.
//
// As in FT: sections and keys ignore case, '=' or ':' separates, lines that start with ';' or '#'
// are comments, and " ;" ends a value; " #" ends it here too. Unlike FT: a key given twice is an
// error, lines have no length limit, and a number that is not one is an error instead of 0.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "ft/core/error.h"

namespace flexq_ft {

constexpr size_t kMaxIniBytes = size_t{1} << 20;
constexpr int kMaxIniKeys = 4096;  // and sections

struct IniEntry {
  std::string key;  // lower case
  std::string value;
  int line = 0;
};

// The getters note which keys were asked for, so that refuse_unread() can name the others. The
// forms without a fallback want the key to exist. Errors have the file's kind.
class IniSection {
 public:
  IniSection(std::string name, std::string file, ErrorKind kind);

  const std::string& name() const { return name_; }
  const std::vector<IniEntry>& entries() const { return entries_; }
  const IniEntry* find(std::string_view key) const;  // does not count as asked
  bool has(std::string_view key) const { return find(key) != nullptr; }

  std::string get_string(const std::string& key) const;
  std::string get_string(const std::string& key, const std::string& fallback) const;
  int64_t get_int(const std::string& key) const;  // decimal, or 0x…
  int64_t get_int(const std::string& key, int64_t fallback) const;
  double get_float(const std::string& key) const;
  double get_float(const std::string& key, double fallback) const;
  bool get_bool(const std::string& key) const;  // true yes on 1, false no off 0
  bool get_bool(const std::string& key, bool fallback) const;

  // Counts a key as asked for: one that is known and has no effect.
  void ignore(const std::string& key) const { asked_.insert(key); }
  std::vector<IniEntry> unread() const;
  // Throws for keys that nobody asked for: each with its line and the nearest name.
  void refuse_unread() const;

  // Throws Error{kind, "FILE:LINE: KEY text"}.
  [[noreturn]] void fail(const std::string& key, const std::string& text) const;

 private:
  friend class IniParser;
  const IniEntry& required(const std::string& key) const;

  std::string name_;
  std::string file_;
  ErrorKind kind_;
  std::vector<IniEntry> entries_;
  mutable std::set<std::string> asked_;
};

class IniFile {
 public:
  static IniFile read(const std::string& path, ErrorKind kind);
  static IniFile parse(std::string_view text, std::string name, ErrorKind kind);

  const std::string& name() const { return name_; }
  const std::vector<IniSection>& sections() const { return sections_; }
  const IniSection* find(std::string_view section) const;
  const IniSection& section(const std::string& section) const;  // or throws, listing those there

 private:
  friend class IniParser;
  std::string name_;
  ErrorKind kind_ = ErrorKind::kConfig;
  std::vector<IniSection> sections_;
};

}  // namespace flexq_ft
