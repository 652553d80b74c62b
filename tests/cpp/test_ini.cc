#include "ft/weights/ini.h"

#include <string>

#include "tests/cpp/check.h"
#include "tests/cpp/fuzz.h"

using namespace flexq_ft;

namespace {

IniFile parse(const std::string& text) { return IniFile::parse(text, "t.ini", ErrorKind::kConfig); }

}  // namespace

TEST(ft_grammar_is_read) {
  const IniFile file = parse(
      "\xef\xbb\xbf; a comment\r\n"
      "# another\n"
      "[Request]   ; sizes\n"
      "  Top_K : 4\r\n"
      "top_p=0.5 ; nucleus\n"
      "temperature = 1e-05 # cold\n"
      "name = a;b#c\n"
      "empty =\n"
      "blank = ; nothing\n"
      "url = a=b:c\n"
      "[OTHER]\n"
      "x = 0x10");
  const IniSection& request = file.section("request");
  EXPECT_EQ(request.get_int("top_k"), 4);
  EXPECT_EQ(request.get_float("top_p"), 0.5);
  EXPECT_EQ(request.get_float("temperature"), 1e-05);
  EXPECT_EQ(request.get_string("name"), "a;b#c");
  EXPECT_EQ(request.get_string("empty"), "");
  EXPECT_EQ(request.get_string("blank"), "");
  EXPECT_EQ(request.get_string("url"), "a=b:c");
  EXPECT_EQ(file.section("Other").get_int("x"), 16);
  EXPECT_EQ(file.sections().size(), size_t{2});
}

TEST(lines_longer_than_fts_200_bytes_are_whole) {
  const std::string path(5000, 'p');
  EXPECT_EQ(parse("[a]\nmodel_dir = " + path + "\n").section("a").get_string("model_dir"), path);
}

TEST(a_key_given_twice_names_both_lines_even_across_a_reopened_section) {
  EXPECT_THROW(parse("[a]\nx = 1\n[b]\n[A]\nX = 2\n"), Error,
               "t.ini:5: 'x' was already given on line 2 (1 and 2)");
}

TEST(numbers_that_are_none_name_key_value_and_line) {
  const IniFile file = parse("[a]\nn = 12abc\nf = 1,5\nb = maybe\noct = 010\nnan = nan\n");
  const IniSection& a = file.section("a");
  EXPECT_THROW(a.get_int("n"), Error, "t.ini:2: n is '12abc', which is not an integer");
  EXPECT_THROW(a.get_float("f"), Error, "t.ini:3: f is '1,5', which is not a number");
  EXPECT_THROW(a.get_bool("b"), Error, "t.ini:4: b is 'maybe'");
  EXPECT_THROW(a.get_int("oct", 3), Error, "t.ini:5: oct is '010'");
  EXPECT_THROW(a.get_float("nan"), Error, "t.ini:6: nan is 'nan'");
}

TEST(fallbacks_serve_for_absent_keys_only) {
  const IniFile file = parse("[a]\nyes = on\nno = False\n");
  const IniSection& a = file.section("a");
  EXPECT_EQ(a.get_int("n", 7), 7);
  EXPECT_EQ(a.get_float("f", 0.5), 0.5);
  EXPECT_EQ(a.get_string("s", "t"), "t");
  EXPECT(a.get_bool("yes", false) && !a.get_bool("no", true) && a.get_bool("absent", true));
  EXPECT_THROW(a.get_int("yess"), Error, "has no key 'yess'; did you mean 'yes'?");
  EXPECT_THROW(file.section("aa"), Error, "there is no section [aa]");
}

TEST(keys_that_nobody_read_are_listed_with_the_nearest_name) {
  const IniFile file = parse("[request]\ntop_kk = 1\nbeam = 2\nknown = 3\nsparse = 0\n");
  const IniSection& request = file.section("request");
  request.get_int("top_k", 1);
  request.get_int("known");
  request.ignore("sparse");
  EXPECT_EQ(request.unread().size(), size_t{2});
  EXPECT_THROW(request.refuse_unread(), Error,
               "t.ini:2: unknown key 'top_kk' in [request]; did you mean 'top_k'?");
}

TEST(broken_lines_are_refused_with_their_number) {
  EXPECT_THROW(parse("x = 1\n"), Error, "t.ini:1: a key before the first [section]");
  EXPECT_THROW(parse("[a\n"), Error, "t.ini:1: a section without ']'");
  EXPECT_THROW(parse("[a] b\n"), Error, "text after a section's ']'");
  EXPECT_THROW(parse("[]\n"), Error, "a section without a name");
  EXPECT_THROW(parse("[a]\njust words\n"), Error, "t.ini:2: neither");
  EXPECT_THROW(parse("[a]\n= 1\n"), Error, "a value without a key");
  EXPECT_THROW(parse("[a]\nx = \xff\n"), Error, "t.ini:2: invalid UTF-8");
  EXPECT_THROW(parse(std::string("[a]\nx = \0\n", 10)), Error, "zero byte");
}

TEST(an_indented_key_that_ft_would_append_is_refused) {
  EXPECT_THROW(parse("[a]\nx = 1\n  y = 2\n"), Error, "t.ini:3: the line is indented");
  EXPECT_EQ(parse("[a]\n  x = 1\n").section("a").get_int("x"), 1);
}

TEST(the_number_of_keys_is_bounded) {
  std::string text = "[a]\n";
  for (int i = 0; i < kMaxIniKeys; ++i) text += "k" + std::to_string(i) + "=1\n";
  EXPECT_THROW(parse(text), Error, "more than 4096 keys");
}

TEST(mutated_files_give_a_value_or_an_error) {
  const std::string text =
      "[request]\ntop_k = 4 ; four\ntop_p : 0.5 # half\n# comment\n[llama]\nhead_num = 32\n";
  const int accepted =
      flexq_test::fuzz(text, 20000, ErrorKind::kConfig, [](const std::string& mutant) {
        const IniFile file = IniFile::parse(mutant, "t.ini", ErrorKind::kConfig);
        for (const IniSection& section : file.sections()) {
          section.get_int("top_k", 1);
          section.get_float("top_p", 1);
          section.refuse_unread();
        }
      });
  EXPECT(accepted > 100 && accepted < 20000);
}
