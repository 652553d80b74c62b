// Deterministic mutations of a valid text: readers must answer each with a value or an Error.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "ft/core/error.h"
#include "tests/cpp/check.h"

namespace flexq_test {

// One to four random edits: a byte changed, inserted or deleted, a stretch repeated or cut off.
inline std::string mutate(const std::string& text, std::mt19937* random) {
  static const std::string kInteresting = "{}[]\",:\\u0123456789eE+-.=;#\n\t \x80\xff\xc3ntf/";
  std::string out = text;
  const int edits = 1 + static_cast<int>((*random)() % 4);
  for (int i = 0; i < edits; ++i) {
    const size_t at = out.empty() ? 0 : (*random)() % out.size();
    const char byte = kInteresting[(*random)() % kInteresting.size()];
    switch ((*random)() % 5) {
      case 0:
        if (!out.empty()) out[at] = byte;
        break;
      case 1:
        out.insert(out.begin() + static_cast<std::ptrdiff_t>(at), byte);
        break;
      case 2:
        out.erase(at, 1 + (*random)() % 3);
        break;
      case 3:
        out.insert(at, out.substr((*random)() % (out.size() + 1), (*random)() % 40));
        break;
      default:
        if ((*random)() % 4 == 0) out.resize(at);
        break;
    }
  }
  return out;
}

// Calls read on `count` mutations; anything thrown that is not an Error of that kind is a failure.
// Returns how many were accepted.
template <typename Read>
int fuzz(const std::string& text, int count, flexq_ft::ErrorKind kind, Read&& read) {
  std::mt19937 random(12345);
  int accepted = 0;
  for (int i = 0; i < count; ++i) {
    const std::string mutant = mutate(text, &random);
    try {
      read(mutant);
      ++accepted;
    } catch (const flexq_ft::Error& error) {
      if (error.kind() != kind) report_failure(__FILE__, __LINE__, mutant + "\n" + error.what());
    } catch (const std::exception& error) {
      report_failure(__FILE__, __LINE__, mutant + "\n" + error.what());
    }
  }
  return accepted;
}

}  // namespace flexq_test
