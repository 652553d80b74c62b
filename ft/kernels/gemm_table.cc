#include "ft/kernels/gemm_table.h"

#include <charconv>
#include <iomanip>
#include <sstream>

#include "ft/core/check.h"

namespace flexq_ft {

namespace {

constexpr const char* kFirstLine = "# flexq-ft gemm table 1";
constexpr const char* kColumns = "scheme\tdtype\tn\tk\tm\tkernel\tconfig\tus\tnote";
constexpr const char* kGpu = "# gpu ";
constexpr const char* kVersion = "# cublaslt ";

[[noreturn]] void refuse(int line, const std::string& what) {
  throw Error(ErrorKind::kConfig, detail::join("line ", line, " of a GEMM table: ", what), {},
              "measure it anew: flexq-ft bench tune");
}

std::vector<std::string> split(const std::string& line, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = line.find(separator, begin)) != std::string::npos; begin = end + 1) {
    parts.push_back(line.substr(begin, end - begin));
  }
  parts.push_back(line.substr(begin));
  return parts;
}

bool starts_with(const std::string& text, const std::string& start) {
  return text.rfind(start, 0) == 0;
}

bool parse_scheme(const std::string& text, Scheme* out) {
  for (Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
    if (text != to_string(scheme)) continue;
    *out = scheme;
    return true;
  }
  return false;
}

int64_t parse_size(const std::string& text, int line) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value <= 0) refuse(line, "'" + text + "' is no size");
  return value;
}

GemmRow parse_row(const std::string& text, int line) {
  const std::vector<std::string> parts = split(text, '\t');
  if (parts.size() != 9) refuse(line, detail::join(parts.size(), " columns, not 9"));
  GemmRow row;
  if (!parse_scheme(parts[0], &row.problem.scheme)) refuse(line, "scheme '" + parts[0] + "'");
  if (!parse_dtype(parts[1], &row.problem.dtype)) refuse(line, "dtype '" + parts[1] + "'");
  row.problem.n = parse_size(parts[2], line);
  row.problem.k = parse_size(parts[3], line);
  row.problem.m = parse_size(parts[4], line);
  if (m_bucket(row.problem.m) != row.problem.m) refuse(line, "m is not a power of two");
  row.kernel = parts[5];
  if (row.kernel != "skinny" && row.kernel != "cublaslt") refuse(line, "kernel " + row.kernel);
  row.config = parts[6];
  std::istringstream us(parts[7]);
  us.imbue(std::locale::classic());
  if (!(us >> row.us)) refuse(line, "'" + parts[7] + "' is no time");
  row.note = parts[8];
  return row;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const GemmProblem& p) {
  return out << "GemmProblem{scheme=" << p.scheme << ", dtype=" << p.dtype << ", m=" << p.m
             << ", n=" << p.n << ", k=" << p.k << (p.rounded ? ", rounded}" : "}");
}

int64_t m_bucket(int64_t m) {
  int64_t bucket = 1;
  while (bucket < m) bucket *= 2;
  return bucket;
}

GemmTable GemmTable::parse(const std::string& text) {
  GemmTable table;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (number == 1) {
      if (line != kFirstLine) refuse(1, detail::join("it must be '", kFirstLine, "'"));
    } else if (starts_with(line, kGpu)) {
      table.gpu_ = line.substr(std::string(kGpu).size());
    } else if (starts_with(line, kVersion)) {
      table.library_version_ =
          static_cast<size_t>(parse_size(line.substr(std::string(kVersion).size()), number));
    } else if (!line.empty() && line[0] != '#' && line != kColumns) {
      table.set(parse_row(line, number));
    }
  }
  if (table.gpu_.empty()) refuse(2, "there is no line '# gpu NAME'");
  return table;
}

size_t GemmTable::size() const {
  size_t count = 0;
  for (const auto& [weight, rows] : rows_) count += rows.size();
  return count;
}

std::vector<const GemmRow*> GemmTable::rows() const {
  std::vector<const GemmRow*> out;
  for (const auto& [weight, rows] : rows_) {
    for (const auto& [m, row] : rows) out.push_back(&row);
  }
  return out;
}

const GemmRow* GemmTable::find(const GemmProblem& p) const {
  const auto weight = rows_.find({p.scheme, p.dtype, p.n, p.k});
  if (weight == rows_.end() || weight->second.empty()) return nullptr;
  const auto& rows = weight->second;
  const auto row = rows.lower_bound(p.m);
  return row != rows.end() ? &row->second : &rows.rbegin()->second;
}

void GemmTable::set(const GemmRow& row) {
  const GemmProblem& p = row.problem;
  rows_[{p.scheme, p.dtype, p.n, p.k}][p.m] = row;
}

std::string GemmTable::text() const {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << kFirstLine << '\n' << kGpu << gpu_ << '\n';
  if (library_version_ != 0) out << kVersion << library_version_ << '\n';
  out << kColumns << '\n' << std::fixed << std::setprecision(2);
  for (const GemmRow* row : rows()) {
    const GemmProblem& p = row->problem;
    out << p.scheme << '\t' << p.dtype << '\t' << p.n << '\t' << p.k << '\t' << p.m << '\t'
        << row->kernel << '\t' << row->config << '\t' << row->us << '\t' << row->note << '\n';
  }
  return out.str();
}

std::string built_in_gemm_table(const std::string& gpu) {
  const std::string line = std::string("\n") + kGpu + gpu + "\n";
  for (const std::string& text : gemm_table_texts()) {
    if (text.find(line) != std::string::npos) return text;
  }
  return {};
}

void GemmTable::add_missing(const GemmTable& older) {
  if (older.gpu_ != gpu_) return;
  const bool same = older.library_version_ == library_version_;
  for (const auto& [weight, rows] : older.rows_) {
    for (const auto& [m, row] : rows) {
      if (same || row.kernel == "skinny") rows_[weight].emplace(m, row);
    }
  }
}

}  // namespace flexq_ft
