#include "ft/bin/csv.h"

#include <string_view>

#include "ft/core/check.h"
#include "ft/weights/text.h"

namespace flexq_ft {

using detail::join;

namespace {

constexpr size_t kMaxCsvBytes = size_t{64} << 20;

[[noreturn]] void fail(const std::string& path, size_t line, const std::string& text) {
  throw Error(ErrorKind::kConfig, join(path, ":", line, ": ", text));
}

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

std::vector<int64_t> parse_line(std::string_view line, const std::string& path, size_t number) {
  std::vector<int64_t> ids;
  while (true) {
    const size_t comma = line.find(',');
    const std::string_view field = trim(line.substr(0, comma));
    int64_t id = 0;
    if (field.empty()) fail(path, number, join("field ", ids.size() + 1, " is empty"));
    if (!parse_integer(field, &id)) {
      fail(path, number, join("field ", ids.size() + 1, " is '", field, "', not an integer"));
    }
    ids.push_back(id);
    if (comma == std::string_view::npos) return ids;
    line.remove_prefix(comma + 1);
  }
}

TokenRows read_rows(const std::string& path) {
  const std::string text = read_text_file(path, kMaxCsvBytes, ErrorKind::kConfig);
  std::string_view rest = without_byte_order_mark(text);
  const size_t last = rest.find_last_not_of(" \t\r\n");
  rest = rest.substr(0, last == std::string_view::npos ? 0 : last + 1);
  if (rest.empty()) throw Error(ErrorKind::kConfig, path + " holds no ids");
  TokenRows rows;
  while (true) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    if (trim(line).empty()) fail(path, rows.size() + 1, "the line is empty");
    rows.push_back(parse_line(line, path, rows.size() + 1));
    if (end == std::string_view::npos) return rows;
    rest.remove_prefix(end + 1);
  }
}

}  // namespace

TokenRows read_start_ids(const std::string& path) { return read_rows(path); }

TokenRows read_word_list(const std::string& path) {
  const TokenRows rows = read_rows(path);
  if (rows.size() != 2) {
    throw Error(ErrorKind::kConfig,
                join(path, " has ", rows.size(), " lines; a word list has two: ids, and ends"));
  }
  const std::vector<int64_t>& ids = rows[0];
  const std::vector<int64_t>& ends = rows[1];
  if (ids.size() != ends.size()) {
    fail(path, 2, join(ends.size(), " ends for ", ids.size(), " ids; pad the ends with -1"));
  }
  TokenRows words;
  size_t begin = 0;
  size_t i = 0;
  for (; i < ends.size() && ends[i] != -1; ++i) {
    if (ends[i] <= static_cast<int64_t>(begin) || ends[i] > static_cast<int64_t>(ids.size())) {
      fail(path, 2,
           join("end ", ends[i], " of word ", i + 1, " is not in ", begin + 1, " to ", ids.size()));
    }
    const size_t end = static_cast<size_t>(ends[i]);
    words.emplace_back(ids.begin() + begin, ids.begin() + end);
    begin = end;
  }
  for (; i < ends.size(); ++i) {
    if (ends[i] != -1) fail(path, 2, join("end ", ends[i], " after the padding of -1"));
  }
  for (size_t j = begin; j < ids.size(); ++j) {  // lists made for a batch are padded with 0
    if (ids[j] != 0) fail(path, 1, join("id ", ids[j], " is after the end of the last word"));
  }
  return words;
}

void check_ids(const TokenRows& rows, int64_t vocab_size, const std::string& path, bool one_line) {
  for (size_t row = 0; row < rows.size(); ++row) {
    for (const int64_t id : rows[row]) {
      if (id < 0 || id >= vocab_size) {
        fail(path, one_line ? 1 : row + 1,
             join("id ", id, " is not in the vocabulary of ", vocab_size));
      }
    }
  }
}

}  // namespace flexq_ft
