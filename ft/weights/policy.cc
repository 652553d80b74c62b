#include "ft/weights/policy.h"

#include <algorithm>

#include "ft/core/check.h"
#include "ft/weights/json_fields.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

constexpr int64_t kMaxLayer = 1023;
constexpr size_t kMaxRules = 6 * (kMaxLayer + 1);  // one for each linear of each layer

int read_bits(JsonFields* fields, const std::string& key) {
  const int64_t bits = fields->integer(key, 6, 16);
  if (bits != 6 && bits != 8 && bits != 16) {
    fields->fail(key, join("is ", bits, ", allowed are 6, 8 and 16"));
  }
  return static_cast<int>(bits);
}

// "*", "0-3" or a list of layers.
std::vector<int64_t> read_layers(JsonFields* rule) {
  const JsonValue& value = rule->value("layers");
  if (value.get<JsonValue::Array>() != nullptr) {
    std::vector<int64_t> layers = rule->integers("layers", 0, kMaxLayer);
    if (layers.empty()) rule->fail("layers", "is an empty list");
    return layers;
  }
  const std::string& text = rule->text("layers");
  if (text == "*") return {};
  const size_t dash = text.find('-');
  int64_t first = 0;
  int64_t last = 0;
  if (dash == std::string::npos || !parse_integer(text.substr(0, dash), &first) ||
      !parse_integer(text.substr(dash + 1), &last) || first > last || last > kMaxLayer) {
    rule->fail("layers", join("is '", text, "', allowed are '*', 'FIRST-LAST' and [LAYER, …]"));
  }
  std::vector<int64_t> layers;
  for (int64_t layer = first; layer <= last; ++layer) layers.push_back(layer);
  return layers;
}

}  // namespace

bool Policy::Rule::matches(int64_t layer, const std::string& name) const {
  if (name != linear) return false;
  return layers.empty() || std::find(layers.begin(), layers.end(), layer) != layers.end();
}

int Policy::act_bits(int64_t layer, const std::string& linear) const {
  int bits = default_bits;
  for (const Rule& rule : rules) {
    if (rule.matches(layer, linear)) bits = rule.act_bits;
  }
  return bits;
}

std::vector<std::string> linear_names(const ModelConfig& config) {
  if (config.gated_ffn) return {"qkv", "o", "gate_up", "down"};
  return {"qkv", "o", "fc1", "fc2"};
}

void check_policy(const Policy& policy, const ModelConfig& config) {
  const std::vector<std::string> names = linear_names(config);
  for (size_t i = 0; i < policy.rules.size(); ++i) {
    const Policy::Rule& rule = policy.rules[i];
    bool matches = false;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      for (const std::string& name : names) matches = matches || rule.matches(layer, name);
    }
    if (matches) continue;
    std::string layers = rule.layers.empty() ? "*" : "";
    for (const int64_t layer : rule.layers) layers += join(layers.empty() ? "" : ",", layer);
    throw Error(
        ErrorKind::kConfig,
        join("rule ", i + 1, " of policy ", policy.name, " matches nothing: layers ", layers,
             ", linear ", rule.linear),
        join(config.name, " has layers 0 to ", config.num_layers - 1, " with ", join_names(names)),
        "change or delete the rule");
  }
}

Policy read_policy(const JsonDocument& document, const JsonValue& value) {
  JsonFields fields(document, value, "policy");
  fields.expect("schema", "flexq-ft/policy/1");
  Policy policy;
  policy.name = fields.optional("name") == nullptr ? "custom" : fields.text("name");
  policy.default_bits = read_bits(&fields, "default");
  policy.rules.clear();
  if (fields.optional("rules") != nullptr) {
    for (const JsonValue& item : fields.array("rules")) {
      if (policy.rules.size() == kMaxRules) {
        fields.fail("rules", join("has more than ", kMaxRules, " rules"));
      }
      JsonFields rule(document, item, join("policy.rules[", policy.rules.size(), "]"));
      Policy::Rule out;
      out.layers = read_layers(&rule);
      static constexpr const char* kNames[] = {"qkv", "o", "gate_up", "down", "fc1", "fc2"};
      out.linear = kNames[rule.choice("linear", {"qkv", "o", "gate_up", "down", "fc1", "fc2"})];
      out.act_bits = read_bits(&rule, "act_bits");
      rule.finish();
      policy.rules.push_back(std::move(out));
    }
  }
  fields.finish();
  return policy;
}

}  // namespace flexq_ft
