// A few lines of test harness: TEST(name) { EXPECT…; } and one main per executable (check.cc).
#pragma once

#include <functional>
#include <sstream>
#include <string>

namespace flexq_test {

struct Registration {
  Registration(const char* name, std::function<void()> body);
};

void report_failure(const char* file, int line, const std::string& text);

// Was the executable called with this argument: has_option("--small").
bool has_option(const char* option);

template <typename A, typename B>
void expect_eq(const A& a, const B& b, const char* expression, const char* file, int line) {
  if (a == b) return;
  std::ostringstream out;
  out << expression << " (" << a << " vs " << b << ")";
  report_failure(file, line, out.str());
}

}  // namespace flexq_test

#define TEST(name)                                                        \
  static void test_##name();                                              \
  static const ::flexq_test::Registration reg_##name(#name, test_##name); \
  static void test_##name()

#define EXPECT(cond)                                                      \
  do {                                                                    \
    if (!(cond)) ::flexq_test::report_failure(__FILE__, __LINE__, #cond); \
  } while (0)

#define EXPECT_EQ(a, b) ::flexq_test::expect_eq((a), (b), #a " == " #b, __FILE__, __LINE__)

// The statement must throw Type; its what() must contain the text.
#define EXPECT_THROW(statement, Type, text)                                                 \
  do {                                                                                      \
    try {                                                                                   \
      statement;                                                                            \
      ::flexq_test::report_failure(__FILE__, __LINE__, #statement " did not throw " #Type); \
    } catch (const Type& error) {                                                           \
      if (std::string(error.what()).find(text) == std::string::npos) {                      \
        ::flexq_test::report_failure(                                                       \
            __FILE__, __LINE__,                                                             \
            std::string("message without \"") + (text) + "\": " + error.what());            \
      }                                                                                     \
    }                                                                                       \
  } while (0)
