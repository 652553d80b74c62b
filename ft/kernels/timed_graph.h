// Launches captured once, replayed and timed on the device: what a table of kernels is measured by.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "ft/core/cuda.h"

namespace flexq_ft {

class TimedGraph {
 public:
  // launch(i) for i of 0 to launches - 1; first() before them, which is timed too.
  template <typename First, typename F>
  TimedGraph(Stream stream, int launches, First&& first, F&& launch) : launches_(launches) {
    graph_.capture(stream, [&] {
      first();
      for (int i = 0; i < launches; ++i) launch(i);
    });
  }

  // Of one launch, in microseconds, the mean of so many replays back to back. Waits.
  double replay(Stream stream, int replays = 1) {
    begin_.record(stream);
    for (int i = 0; i < replays; ++i) graph_.launch(stream);
    end_.record(stream);
    cuda::synchronize(stream);
    return static_cast<double>(end_.since_ms(begin_)) * 1000 / launches_ / replays;
  }

  int launches() const { return launches_; }

 private:
  int launches_;
  cuda::Graph graph_;
  cuda::Event begin_{true}, end_{true};
};

inline double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<size_t>(std::lround(q * last))];
}

}  // namespace flexq_ft
