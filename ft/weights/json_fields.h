// JsonFields: the members of one object, taken by name and checked; what is left is refused.
#pragma once

#include <initializer_list>
#include <set>
#include <string>
#include <vector>

#include "ft/weights/json.h"

namespace flexq_ft {

class JsonFields {
 public:
  // path is how errors name the object ("model", "files.x.bin"); "" for the whole document.
  JsonFields(const JsonDocument& document, const JsonValue& value, std::string path);

  // Every getter wants the member to exist; optional() gives null for one that does not.
  const JsonValue& value(const std::string& key);
  const JsonValue* optional(const std::string& key);
  int64_t integer(const std::string& key, int64_t min, int64_t max);
  double number(const std::string& key);
  bool boolean(const std::string& key);
  const std::string& text(const std::string& key);
  const JsonValue::Array& array(const std::string& key);
  std::vector<int64_t> integers(const std::string& key, int64_t min, int64_t max);
  JsonFields object(const std::string& key);
  // The position of a member's text among the allowed ones.
  size_t choice(const std::string& key, std::initializer_list<const char*> allowed);
  // The member must be this text.
  void expect(const std::string& key, const std::string& wanted);

  // Throws for members that no getter asked for, naming the nearest one that exists.
  void finish() const;

  [[noreturn]] void fail(const std::string& key, const std::string& text) const;
  std::string name(const std::string& key) const;  // "model.num_layers"

  static int64_t to_integer(const JsonDocument& document, const JsonValue& value,
                            const std::string& name, int64_t min, int64_t max);

 private:
  template <typename T>
  const T& typed(const std::string& key, const char* what);

  const JsonDocument& document_;
  const JsonValue& at_;
  const JsonValue::Object* members_;
  std::string path_;
  std::set<std::string> asked_;
};

}  // namespace flexq_ft
