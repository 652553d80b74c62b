// GemmTuner: measures every way to do a product on the current GPU and says which row a table gets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ft/kernels/gemm_table.h"

namespace flexq_ft {

// The products of one weight with several numbers of tokens.
struct TuneWeight {
  Scheme scheme = Scheme::kFloat;
  DataType dtype = DataType::kFp16;  // of x
  int64_t n = 0, k = 0;
  std::vector<int64_t> ms;  // powers of two
};

struct TuneOptions {
  int heuristics = 64;                      // asked of cuBLASLt
  int64_t cold_bytes = int64_t{400} << 20;  // of distinct weights between two readings of one
  int launches = 10;                        // of a candidate in its first timing, at least
  int finalists = 3;
  int replays = 20;  // of a finalist, taken in turn with the others
};

// A finalist's times of one product in microseconds.
struct TuneTime {
  std::string kernel, config, note;
  double median = 0, p10 = 0, p90 = 0;
};

// One problem, measured.
struct TuneResult {
  GemmRow row;                       // the winner
  std::vector<TuneTime> times;       // of the finalists, the fastest first
  int returned = 0;                  // heuristics of cuBLASLt
  int skinny = 0;                    // configurations of ours
  std::vector<std::string> refused;  // candidates that failed, gave wrong results or varied
};

class GemmTuner {
 public:
  virtual ~GemmTuner() = default;

  // For m <= 16 in floats the winners of a weight add up in one order, so that a row's bits do not
  // depend on the batch: one order for all, the best over all ms.
  virtual std::vector<TuneResult> tune(const TuneWeight& weight) = 0;

  // An empty table of this GPU and this version of cuBLASLt.
  virtual GemmTable empty_table() const = 0;
};

// Throws Error{kDevice} without a GPU or without cuBLASLt.
std::unique_ptr<GemmTuner> make_gemm_tuner(const TuneOptions& options);

}  // namespace flexq_ft
