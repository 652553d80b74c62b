#include "flexq_kernels/gpu/selector.h"

#include <algorithm>
#include <memory>
#include <sstream>
#include <stdexcept>

#include "flexq_kernels/gpu/checks.h"

namespace flexq_kernels::gpu {

namespace {

constexpr const char* kTitle = "# flexq w6ax choices 1";
constexpr const char* kGpu = "# gpu ";
constexpr const char* kColumns = "n\tk\tm\tfamily\tconfig\tus";

[[noreturn]] void bad_line(int number, const std::string& line) {
  throw std::invalid_argument("table of W6Ax choices, line " + std::to_string(number) + ": \"" +
                              line + "\"; a row is " + kColumns);
}

}  // namespace

ChoiceTable ChoiceTable::parse(const std::string& text) {
  ChoiceTable table;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (number == 1 && line != kTitle) bad_line(number, line);
    if (line.rfind(kGpu, 0) == 0) table.gpu_ = line.substr(std::string(kGpu).size());
    if (line.empty() || line[0] == '#' || line == kColumns) continue;
    std::vector<std::string> cells;
    std::istringstream in(line);
    for (std::string cell; std::getline(in, cell, '\t');) cells.push_back(cell);
    if (cells.size() != 6) bad_line(number, line);
    try {
      table.set(std::stoll(cells[0]), std::stoll(cells[1]), std::stoll(cells[2]),
                {cells[3], cells[4], std::stod(cells[5])});
    } catch (const std::logic_error&) {  // no number, or one too large
      bad_line(number, line);
    }
  }
  return table;
}

std::string ChoiceTable::text() const {
  std::ostringstream out;
  out << kTitle << '\n' << kGpu << gpu_ << '\n' << kColumns << '\n';
  out.setf(std::ios::fixed);
  out.precision(2);
  for (const auto& [key, row] : rows_) {
    const auto& [n, k, m] = key;
    out << n << '\t' << k << '\t' << m << '\t' << row.family << '\t' << row.config << '\t' << row.us
        << '\n';
  }
  return out.str();
}

const ChoiceTable::Row* ChoiceTable::find(int64_t n, int64_t k, int64_t m) const {
  auto at = rows_.lower_bound({n, k, m});
  const auto is_mine = [&](auto row) {
    return row != rows_.end() && std::get<0>(row->first) == n && std::get<1>(row->first) == k;
  };
  if (is_mine(at)) return &at->second;
  if (at == rows_.begin() || !is_mine(--at)) return nullptr;
  return &at->second;
}

Selector::Selector(const Device& device, const std::string& table) : device_(device) {
  if (table.empty()) {
    note_ = "no table of W6Ax choices for " + device.name + ": default kernels";
    return;
  }
  table_ = ChoiceTable::parse(table);
  if (table_.gpu() == device.name) {
    note_ = "W6Ax choices of " + device.name + ": " + std::to_string(table_.size()) + " rows";
    return;
  }
  note_ = "the table of W6Ax choices is of " + table_.gpu() + ", not " + device.name +
          ": default kernels";
  table_ = {};
}

Choice Selector::choose(const GemmProblem& problem) const {
  check_problem(problem);
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::tuple<int64_t, int64_t, int64_t> key{problem.n, problem.k, problem.m};
  auto found = chosen_.find(key);
  if (found == chosen_.end()) found = chosen_.emplace(key, make_choice(problem)).first;
  return found->second;
}

Choice Selector::make_choice(const GemmProblem& problem) const {
  std::vector<Refusal> refusals;
  const std::vector<Candidate> all = candidates(problem, device_, &refusals);
  if (all.empty()) {
    std::ostringstream out;
    out << problem << ": no GPU kernel takes it";
    for (const Refusal& refusal : refusals) out << "; " << refusal.family << ": " << refusal.reason;
    throw std::invalid_argument(out.str());
  }
  const ChoiceTable::Row* row = table_.find(problem.n, problem.k, problem.m);
  if (row == nullptr) return {all.front(), "default"};
  const auto measured = std::find_if(all.begin(), all.end(), [row](const Candidate& candidate) {
    return family_name(candidate) == row->family && config_text(candidate) == row->config;
  });
  if (measured != all.end()) return {*measured, "table"};
  return {all.front(),
          "default: the table's " + row->family + " " + row->config + " does not take it"};
}

std::string Selector::explain(const GemmProblem& problem) const {
  const Choice choice = choose(problem);
  const auto shown = [](const Candidate& candidate) {
    return std::string(family_name(candidate)) + " " + config_text(candidate);
  };
  std::ostringstream out;
  out << problem << ": " << shown(choice.candidate) << " (" << choice.why << ")\n";
  std::vector<Refusal> refusals;
  for (const Candidate& candidate : candidates(problem, device_, &refusals)) {
    if (shown(candidate) != shown(choice.candidate)) out << "  also " << shown(candidate) << '\n';
  }
  for (const Refusal& refusal : refusals) {
    out << "  not " << refusal.family << ": " << refusal.reason << '\n';
  }
  return out.str();
}

const Selector& device_selector() {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<Selector>> selectors;
  const Device& device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Selector>& mine = selectors[device.name];
  if (!mine) mine = std::make_unique<Selector>(device, built_in_choices(device.name));
  return *mine;
}

}  // namespace flexq_kernels::gpu
