#include "tests/cpp/check.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <utility>
#include <vector>

namespace flexq_test {

namespace {

std::vector<std::pair<const char*, std::function<void()>>>& tests() {
  static std::vector<std::pair<const char*, std::function<void()>>> all;
  return all;
}

int g_failures = 0;

std::vector<std::string>& options() {
  static std::vector<std::string> all;
  return all;
}

}  // namespace

Registration::Registration(const char* name, std::function<void()> body) {
  tests().emplace_back(name, std::move(body));
}

void report_failure(const char* file, int line, const std::string& text) {
  ++g_failures;
  std::printf("%s:%d: %s\n", file, line, text.c_str());
}

bool has_option(const char* option) {
  return std::find(options().begin(), options().end(), option) != options().end();
}

}  // namespace flexq_test

int main(int argc, char** argv) {
  flexq_test::options().assign(argv + 1, argv + argc);
  int failed = 0;
  for (const auto& [name, body] : flexq_test::tests()) {
    const int before = flexq_test::g_failures;
    try {
      body();
    } catch (const std::exception& error) {
      flexq_test::report_failure(name, 0, std::string("unexpected exception: ") + error.what());
    }
    const bool ok = flexq_test::g_failures == before;
    std::printf("%s %s\n", ok ? "ok  " : "FAIL", name);
    failed += ok ? 0 : 1;
  }
  std::printf("%zu tests, %d failed\n", flexq_test::tests().size(), failed);
  return failed == 0 && !flexq_test::tests().empty() ? 0 : 1;
}
