#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ft/bin/csv.h"
#include "ft/core/error.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

namespace {

// A file with this text; the next call overwrites it.
std::string file_with(const std::string& text) {
  const auto name = "flexq_ft_test_csv." + std::to_string(getpid());
  const std::string path = (std::filesystem::temp_directory_path() / name).string();
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TokenRows start_ids(const std::string& text) { return read_start_ids(file_with(text)); }
TokenRows words(const std::string& text) { return read_word_list(file_with(text)); }

}  // namespace

TEST(rows_of_different_lengths_blanks_and_line_ends) {
  const TokenRows rows = start_ids("818, 262 ,938\r\n 7\n\n \n");
  EXPECT_EQ(rows.size(), size_t{2});
  EXPECT(rows[0] == (std::vector<int64_t>{818, 262, 938}));
  EXPECT(rows[1] == (std::vector<int64_t>{7}));
}

TEST(a_byte_order_mark_is_no_part_of_an_id) {
  EXPECT(start_ids("\xef\xbb\xbf 7, 8\n")[0] == (std::vector<int64_t>{7, 8}));
}

TEST(a_trailing_comma_is_named_with_file_line_and_field) {
  EXPECT_THROW(start_ids("1, 2\n3, 4,\n"), Error, ":2: field 3 is empty");
}

TEST(what_is_not_an_integer_is_not_skipped) {
  EXPECT_THROW(start_ids("1, two\n"), Error, ":1: field 2 is 'two'");
  EXPECT_THROW(start_ids("1, 2.5\n"), Error, ":1: field 2 is '2.5'");
  EXPECT_THROW(start_ids("99999999999999999999\n"), Error, ":1: field 1");
}

TEST(an_empty_line_is_not_an_empty_prompt) {
  EXPECT_THROW(start_ids("1\n\n2\n"), Error, ":2: the line is empty");
  EXPECT_THROW(start_ids("\n1\n"), Error, ":1: the line is empty");
  EXPECT_THROW(start_ids("\n \n"), Error, "holds no ids");
}

TEST(a_missing_file_is_an_error) {
  EXPECT_THROW(read_start_ids("/nonexistent/start_ids.csv"), Error, "/nonexistent/start_ids.csv");
}

TEST(word_lists_are_ids_and_ends) {
  const TokenRows one = words("287, 4346, 12\n3, -1, -1\n");
  EXPECT_EQ(one.size(), size_t{1});
  EXPECT(one[0] == (std::vector<int64_t>{287, 4346, 12}));
  const TokenRows two = words("7768,3908\n1,2\n");
  EXPECT_EQ(two.size(), size_t{2});
  EXPECT(two[1] == (std::vector<int64_t>{3908}));
}

TEST(word_lists_padded_for_a_batch_lose_the_padding) {
  const TokenRows list = words("5, 6, 7, 0, 0\n2, 3, -1, -1, -1\n");
  EXPECT_EQ(list.size(), size_t{2});
  EXPECT(list[0] == (std::vector<int64_t>{5, 6}));
}

TEST(ends_that_do_not_cut_the_ids_into_words_are_refused) {
  EXPECT_THROW(words("1, 2\n1\n"), Error, ":2: 1 ends for 2 ids");
  EXPECT_THROW(words("1, 2\n2, 1\n"), Error, ":2: end 1 of word 2 is not in 3 to 2");
  EXPECT_THROW(words("1, 2\n3, -1\n"), Error, ":2: end 3 of word 1 is not in 1 to 2");
  EXPECT_THROW(words("1, 2\n0, 2\n"), Error, ":2: end 0 of word 1");
  EXPECT_THROW(words("1, 2\n-1, 2\n"), Error, ":2: end 2 after the padding");
  EXPECT_THROW(words("1, 2\n1, -1\n"), Error, ":1: id 2 is after the end of the last word");
  EXPECT_THROW(words("1, 2\n"), Error, "has 1 lines");
  EXPECT_THROW(words("1\n1\n1\n"), Error, "has 3 lines");
}

TEST(ids_outside_the_vocabulary_are_named_with_their_line) {
  const TokenRows rows = {{0, 5}, {9, 10}};
  check_ids(rows, 11, "f.csv", false);
  EXPECT_THROW(check_ids(rows, 10, "f.csv", false), Error, "f.csv:2: id 10 is not in");
  EXPECT_THROW(check_ids(rows, 10, "f.csv", true), Error, "f.csv:1: id 10 is not in");
  EXPECT_THROW(check_ids({{-1}}, 10, "f.csv", false), Error, "f.csv:1: id -1 is not in");
}
