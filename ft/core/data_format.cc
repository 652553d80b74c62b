#include "ft/core/data_format.h"

namespace flexq_ft {

int int8_mode(Scheme scheme) {
  switch (scheme) {
    case Scheme::kFloat:
      return 0;
    case Scheme::kW8A16:
      return 1;
    case Scheme::kW8A8:
      return 2;
    case Scheme::kW6Ax:
      return 5;
  }
  return 0;
}

bool scheme_of_int8_mode(int mode, Scheme* out) {
  for (Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
    if (int8_mode(scheme) == mode) {
      *out = scheme;
      return true;
    }
  }
  return false;
}

const char* to_string(Scheme scheme) {
  switch (scheme) {
    case Scheme::kFloat:
      return "fp16";
    case Scheme::kW8A16:
      return "w8a16";
    case Scheme::kW8A8:
      return "w8a8";
    case Scheme::kW6Ax:
      return "w6ax";
  }
  return "unknown";
}

std::ostream& operator<<(std::ostream& out, Scheme scheme) { return out << to_string(scheme); }

Scheme scheme_of(HeadFormat head) {
  constexpr Scheme kSchemes[] = {Scheme::kFloat, Scheme::kW8A16, Scheme::kW6Ax};
  return kSchemes[static_cast<size_t>(head)];
}

bool parse_head_format(const std::string& text, HeadFormat* out) {
  for (HeadFormat head : {HeadFormat::kFloat, HeadFormat::kW8, HeadFormat::kW6}) {
    if (text != to_string(head)) continue;
    *out = head;
    return true;
  }
  return false;
}

const char* to_string(HeadFormat head) {
  constexpr const char* kNames[] = {"fp16", "w8", "w6"};
  return kNames[static_cast<size_t>(head)];
}

std::ostream& operator<<(std::ostream& out, HeadFormat head) { return out << to_string(head); }

}  // namespace flexq_ft
