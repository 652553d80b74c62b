// Policy: which activations of a w6ax model are quantised to how many bits. Weights do not depend
// on it, so that it is chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ft/core/model_config.h"
#include "ft/weights/json.h"

namespace flexq_ft {

// Rule after rule; the last match wins.
struct Policy {
  struct Rule {
    std::vector<int64_t> layers;  // empty: all
    std::string linear;           // qkv | o | gate_up | down | fc1 | fc2
    int act_bits = 6;             // 6, 8, or 16: not quantised

    bool matches(int64_t layer, const std::string& linear) const;
  };
  std::string name = "flexq";
  int default_bits = 6;
  std::vector<Rule> rules = {{{}, "down", 8}, {{}, "fc2", 8}};

  int act_bits(int64_t layer, const std::string& linear) const;
};

// The linear layers of one layer of the model: "qkv", "o", …
std::vector<std::string> linear_names(const ModelConfig& config);

// Throws Error{kConfig} for a rule that matches no linear layer of the model. For policies that a
// user gives; the built-in default names down and fc2, of which a model has one.
void check_policy(const Policy& policy, const ModelConfig& config);

// A policy document (schema flexq-ft/policy/1): the manifest's "policy", or a user's own.
Policy read_policy(const JsonDocument& document, const JsonValue& value);

}  // namespace flexq_ft
