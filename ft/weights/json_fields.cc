#include "ft/weights/json_fields.h"

#include "ft/core/check.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

JsonFields::JsonFields(const JsonDocument& document, const JsonValue& value, std::string path)
    : document_(document),
      at_(value),
      members_(value.get<JsonValue::Object>()),
      path_(std::move(path)) {
  if (members_ == nullptr) {
    document_.fail(value, join(path_.empty() ? "the document" : path_, " must be an object, not ",
                               value.type_name()));
  }
}

std::string JsonFields::name(const std::string& key) const {
  return path_.empty() ? key : path_ + "." + key;
}

void JsonFields::fail(const std::string& key, const std::string& text) const {
  for (const JsonMember& member : *members_) {
    if (member.key == key) document_.fail(member.value, join(name(key), " ", text));
  }
  document_.fail(at_, join(name(key), " ", text));
}

const JsonValue* JsonFields::optional(const std::string& key) {
  asked_.insert(key);
  for (const JsonMember& member : *members_) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

const JsonValue& JsonFields::value(const std::string& key) {
  const JsonValue* found = optional(key);
  if (found == nullptr) document_.fail(at_, join(name(key), " is missing"));
  return *found;
}

template <typename T>
const T& JsonFields::typed(const std::string& key, const char* what) {
  const JsonValue& found = value(key);
  const T* data = found.get<T>();
  if (data == nullptr) {
    document_.fail(found, join(name(key), " must be ", what, ", not ", found.type_name()));
  }
  return *data;
}

int64_t JsonFields::to_integer(const JsonDocument& document, const JsonValue& value,
                               const std::string& name, int64_t min, int64_t max) {
  const int64_t* data = value.get<int64_t>();
  if (data == nullptr) {
    document.fail(value, join(name, " must be an integer from ", min, " to ", max, ", not ",
                              value.type_name()));
  }
  if (*data < min || *data > max) {
    document.fail(value, join(name, " is ", *data, ", allowed are ", min, " to ", max));
  }
  return *data;
}

int64_t JsonFields::integer(const std::string& key, int64_t min, int64_t max) {
  return to_integer(document_, value(key), name(key), min, max);
}

double JsonFields::number(const std::string& key) {
  const JsonValue& found = value(key);
  if (const int64_t* integer = found.get<int64_t>()) return static_cast<double>(*integer);
  return typed<double>(key, "a number");
}

bool JsonFields::boolean(const std::string& key) { return typed<bool>(key, "true or false"); }

const std::string& JsonFields::text(const std::string& key) {
  return typed<std::string>(key, "a string");
}

const JsonValue::Array& JsonFields::array(const std::string& key) {
  return typed<JsonValue::Array>(key, "an array");
}

std::vector<int64_t> JsonFields::integers(const std::string& key, int64_t min, int64_t max) {
  std::vector<int64_t> out;
  for (const JsonValue& item : array(key)) {
    out.push_back(to_integer(document_, item, join(name(key), "[", out.size(), "]"), min, max));
  }
  return out;
}

JsonFields JsonFields::object(const std::string& key) {
  return JsonFields(document_, value(key), name(key));
}

size_t JsonFields::choice(const std::string& key, std::initializer_list<const char*> allowed) {
  const std::string& given = text(key);
  std::vector<std::string> names(allowed.begin(), allowed.end());
  for (size_t i = 0; i < names.size(); ++i) {
    if (given == names[i]) return i;
  }
  fail(key, join("is '", given, "', allowed are ", join_names(names)));
}

void JsonFields::expect(const std::string& key, const std::string& wanted) {
  const std::string& given = text(key);
  if (given != wanted) fail(key, join("is '", given, "', this version reads '", wanted, "'"));
}

void JsonFields::finish() const {
  for (const JsonMember& member : *members_) {
    if (asked_.count(member.key) != 0) continue;
    std::vector<std::string> known;
    for (const std::string& key : asked_) {
      bool given = false;
      for (const JsonMember& other : *members_) given = given || other.key == key;
      if (!given) known.push_back(key);
    }
    if (known.empty()) known.assign(asked_.begin(), asked_.end());
    fail(member.key, "is an unknown key" + did_you_mean(member.key, known));
  }
}

}  // namespace flexq_ft
