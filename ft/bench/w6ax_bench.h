// W6Ax products on the current GPU, each implementation beside the others in one run: weights that
// are not in the cache, activations written by the kernel in front, results checked before a time
// is taken.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace flexq_ft {

struct W6axBenchCase {
  int64_t m = 0, n = 0, k = 0;
  int act_bits = 6;
};

struct W6axBenchOptions {
  // Of "stream", "wgmma", "mma", "btc", "weight-only", "cublaslt-int8", "cublaslt-fp16",
  // "cublas-nn".
  std::vector<std::string> implementations;
  int heuristics = 64;                      // asked of cuBLASLt
  int64_t cold_bytes = int64_t{400} << 20;  // of distinct weights between two readings of one
  int finalists = 3;  // of an implementation, measured in turns with all others
  int replays = 30;
  double sustained_s = 0;  // > 0: also the rate over so many seconds without a pause
};

// Times of one product in microseconds.
struct W6axTime {
  std::string implementation, config, note;
  double median = 0, p10 = 0, p90 = 0;
  double full_edges = 0;  // median without programmatic launch; 0: the library's kernels have none
  double sustained = 0;   // mean over the sustained seconds; 0: not asked for
};

struct W6axBenchRow {
  W6axBenchCase problem;
  std::vector<W6axTime> times;       // the fastest of each implementation, as they were asked for
  std::vector<std::string> refused;  // what does not take the problem, failed or gave wrong results
  int heuristics = 0;                // that cuBLASLt returned, of all its implementations
};

class W6axBench {
 public:
  virtual ~W6axBench() = default;
  virtual W6axBenchRow run(const W6axBenchCase& problem) = 0;
};

// Throws Error{kDevice} without a GPU, Error{kConfig} for an implementation that is not known.
std::unique_ptr<W6axBench> make_w6ax_bench(const W6axBenchOptions& options);

}  // namespace flexq_ft
