// The CSV files of the FT programs: token ids of requests, and word lists. As FT reads them, but
// what FT skips or takes for something else is an Error{kConfig} with file and line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flexq_ft {

using TokenRows = std::vector<std::vector<int64_t>>;

// One request a line, ids separated by commas, blanks around them allowed. Empty lines are allowed
// at the end only, so row i is line i + 1.
TokenRows read_start_ids(const std::string& path);

// Two lines of equal length. The first: the ids of all words, one after the other. The second: the
// end of each word in the first, rising, then -1 up to the length. Returns the words.
//
//   287, 4346, 12        one word of three ids        7768, 3908      two words
//   3, -1, -1                                         1, 2            of one id
TokenRows read_word_list(const std::string& path);

// Throws Error{kConfig} for the first id that is not in [0, vocab_size). one_line: all rows come
// from line 1 (a word list), not from one line each.
void check_ids(const TokenRows& rows, int64_t vocab_size, const std::string& path, bool one_line);

}  // namespace flexq_ft
