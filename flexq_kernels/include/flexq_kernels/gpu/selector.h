// Which candidate does a problem on this GPU: the measured one where a table has it, else the
// families' deterministic default.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "flexq_kernels/gpu/candidate.h"

namespace flexq_kernels::gpu {

// Measured choices of one GPU: lines of tab-separated n, k, m, family, config, us behind a header.
// A row stands for all m from the row before it of the same n and k up to its own; the last one for
// all above. Activation bits cost nothing, so rows do not name them.
class ChoiceTable {
 public:
  struct Row {
    std::string family, config;
    double us = 0;
  };

  ChoiceTable() = default;
  // Throws std::invalid_argument with the line that is no row.
  static ChoiceTable parse(const std::string& text);
  std::string text() const;

  explicit ChoiceTable(std::string gpu) : gpu_(std::move(gpu)) {}
  const std::string& gpu() const { return gpu_; }
  size_t size() const { return rows_.size(); }
  void set(int64_t n, int64_t k, int64_t m, Row row) { rows_[{n, k, m}] = std::move(row); }
  const Row* find(int64_t n, int64_t k, int64_t m) const;  // null: no row of this n and k

 private:
  std::string gpu_;
  std::map<std::tuple<int64_t, int64_t, int64_t>, Row> rows_;
};

struct Choice {
  Candidate candidate;
  std::string why;  // "table", or "default: …"
};

class Selector {
 public:
  // table: a ChoiceTable's text, or empty. One of another GPU is not used; note() says so.
  explicit Selector(const Device& device, const std::string& table = {});

  // Chosen once per problem; may be called from several threads. The choice may need a workspace
  // (needs_workspace). Throws std::invalid_argument if nothing takes the problem, with every
  // family's reason.
  Choice choose(const GemmProblem& problem) const;

  // The choice, the other candidates and what was refused, a line each: for logs.
  std::string explain(const GemmProblem& problem) const;

  const std::string& note() const { return note_; }

 private:
  Choice make_choice(const GemmProblem& problem) const;

  Device device_;
  ChoiceTable table_;
  std::string note_;
  mutable std::mutex mutex_;
  mutable std::map<std::tuple<int64_t, int64_t, int64_t>, Choice> chosen_;
};

// The text of the measured table for the GPU of that name (choices/), or empty.
std::string built_in_choices(const std::string& gpu);

// Of the current device, with its built-in table. One for each kind of GPU in the process.
const Selector& device_selector();

}  // namespace flexq_kernels::gpu
