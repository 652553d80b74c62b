// The readers of INI, JSON and policy files.
#include <pybind11/stl.h>

#include "ft/binding/module.h"
#include "ft/weights/ini.h"
#include "ft/weights/json.h"
#include "ft/weights/policy.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

py::object to_python(const JsonValue& value) {
  if (const auto* array = value.get<JsonValue::Array>()) {
    py::list out;
    for (const JsonValue& item : *array) out.append(to_python(item));
    return std::move(out);
  }
  if (const auto* object = value.get<JsonValue::Object>()) {
    py::dict out;
    for (const JsonMember& member : *object) out[py::str(member.key)] = to_python(member.value);
    return std::move(out);
  }
  if (const auto* text = value.get<std::string>()) return py::str(*text);
  if (const auto* integer = value.get<int64_t>()) return py::int_(*integer);
  if (const auto* number = value.get<double>()) return py::float_(*number);
  if (const auto* boolean = value.get<bool>()) return py::bool_(*boolean);
  return py::none();
}

py::dict read_ini(const std::string& path) {
  const IniFile file = IniFile::read(path, ErrorKind::kWeight);
  py::dict out;
  for (const IniSection& section : file.sections()) {
    py::dict keys;
    for (const IniEntry& entry : section.entries()) keys[py::str(entry.key)] = entry.value;
    out[py::str(section.name())] = keys;
  }
  return out;
}

py::list layers_to_python(const Policy::Rule& rule) {
  py::list out;
  for (const int64_t layer : rule.layers) out.append(layer);
  return out;
}

py::dict policy_to_dict(const Policy& policy) {
  py::list rules;
  for (const Policy::Rule& rule : policy.rules) {
    py::dict out;
    out["layers"] =
        rule.layers.empty() ? py::object(py::str("*")) : py::object(layers_to_python(rule));
    out["linear"] = rule.linear;
    out["act_bits"] = rule.act_bits;
    rules.append(out);
  }
  py::dict out;
  out["schema"] = "flexq-ft/policy/1";
  out["name"] = policy.name;
  out["default"] = policy.default_bits;
  out["rules"] = rules;
  return out;
}

}  // namespace

Policy policy_from_python(const py::dict& policy) {
  const auto text = py::module_::import("json").attr("dumps")(policy).cast<std::string>();
  const JsonDocument document = parse_json(text, "policy", ErrorKind::kConfig);
  return read_policy(document, document.root);
}

void bind_readers(py::module_& module) {
  module.def("read_ini", &read_ini, py::arg("path"),
             "{section: {key: value}} of a file in FasterTransformer's INI grammar, read strictly; "
             "names in lower case.");
  module.def(
      "read_json", [](const std::string& path) { return to_python(read_json(path).root); },
      py::arg("path"), "The value of a JSON file, read strictly and within bounds.");
  py::class_<Policy>(module, "Policy", "Activation bits of each linear layer of a w6ax model.")
      .def(py::init<>(), "The built-in default: 8 bits into down and fc2, else 6.")
      .def_static("from_dict", &policy_from_python, py::arg("policy"),
                  "From a policy document (schema flexq-ft/policy/1); ConfigError if it is none.")
      .def("to_dict", &policy_to_dict)
      .def("act_bits", &Policy::act_bits, py::arg("layer"), py::arg("linear"))
      .def("check", &check_policy, py::arg("config"),
           "ConfigError if a rule matches no linear layer of the model.")
      .def_readonly("name", &Policy::name);
}

}  // namespace flexq_ft
