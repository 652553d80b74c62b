#include "ft/decoding/step_profile.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "ft/core/cuda.h"

namespace flexq_ft {

namespace {

constexpr int kWarmUps = 3;
constexpr int kRuns = 21;

class EventMarker final : public StepMarker {
 public:
  EventMarker(Stream stream, size_t kv_bytes) : stream_(stream), kv_bytes_(kv_bytes) {
    mark("", 0);
  }

  void mark(const char* op, size_t bytes) override {
    if (std::strcmp(op, "attention") == 0) bytes = kv_bytes_;
    events_.push_back(std::make_unique<cuda::Event>(true));
    events_.back()->record_in_graph(stream_);
    nodes_.push_back({op, 0.0, bytes});
  }

  // Milliseconds of every node in the last launch.
  std::vector<double> times() const {
    std::vector<double> out;
    for (size_t i = 1; i < events_.size(); ++i)
      out.push_back(events_[i]->since_ms(*events_[i - 1]));
    return out;
  }

  std::vector<StepNode> nodes() const { return {nodes_.begin() + 1, nodes_.end()}; }

 private:
  Stream stream_;
  size_t kv_bytes_;
  std::vector<std::unique_ptr<cuda::Event>> events_;
  std::vector<StepNode> nodes_;
};

}  // namespace

std::vector<StepNode> profile_nodes(Stream stream, size_t kv_bytes,
                                    const std::function<void(StepMarker*)>& work) {
  work(nullptr);
  std::unique_ptr<EventMarker> marker;
  cuda::Graph graph;
  graph.capture(stream, [&] {
    marker = std::make_unique<EventMarker>(stream, kv_bytes);
    work(marker.get());
  });
  std::vector<std::vector<double>> runs;
  for (int i = 0; i < kWarmUps + kRuns; ++i) {
    graph.launch(stream);
    cuda::synchronize(stream);
    if (i >= kWarmUps) runs.push_back(marker->times());
  }
  std::vector<StepNode> nodes = marker->nodes();
  for (size_t node = 0; node < nodes.size(); ++node) {
    std::vector<double> samples;
    for (const std::vector<double>& run : runs) samples.push_back(run[node]);
    std::nth_element(samples.begin(), samples.begin() + kRuns / 2, samples.end());
    nodes[node].ms = samples[kRuns / 2];
  }
  return nodes;
}

}  // namespace flexq_ft
