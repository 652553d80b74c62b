// StepRunner: computes what the scheduler planned, on one device. Steps are submitted and collected
// in the same order; on a GPU the next one may be submitted before the last one's tokens are known.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "ft/decoding/engine.h"
#include "ft/decoding/kv_cache.h"
#include "ft/decoding/scheduler.h"
#include "ft/models/decoder.h"

namespace flexq_ft {

// One slot's sequence.
struct Sequence {
  SlotState state;
  std::vector<int64_t> tokens;  // prompt and output, as far as the host knows it
  std::vector<int32_t> pages;
  std::vector<int64_t> end_ids;  // that end it; none where they are ignored
  SamplingParams params;
  bool used = false;  // from admit to release
};

// What one planned item that reaches the end of its sequence gave.
struct StepSample {
  Sampled sampled;
  bool idle = false;         // the sequence had ended in a step before; nothing was computed
  std::exception_ptr fault;  // the Error of a row that could not be sampled
};

// What a runner works with; everything outlives it.
struct RunnerModel {
  const EngineOptions& options;  // resolved
  const ModelConfig& config;
  Decoder& decoder;
  const KvCache& cache;  // on a GPU with one page more than the pool: idle rows write there
  DeviceComm& comm;
  ComputeDevice device;
};

// The times of the last steps: at most kMost, for an engine whose user never asks.
class StepTimes {
 public:
  void add(double ms) {
    if (times_.size() == kMost) times_.erase(times_.begin(), times_.begin() + kMost / 2);
    times_.push_back(ms);
  }
  std::vector<double> take() { return std::exchange(times_, {}); }

 private:
  static constexpr size_t kMost = size_t{1} << 16;
  std::vector<double> times_;
};

class StepKernel;

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Steps that may be submitted before the first of them is collected.
  virtual int64_t depth() const = 0;

  // A sequence now has this slot.
  virtual void admitted(int64_t slot, const Sequence& sequence) = 0;

  // A throw leaves everything as it was.
  virtual void submit(const std::vector<StepItem>& plan,
                      const std::vector<Sequence>& sequences) = 0;

  // Of the oldest step: one sample for each item of its plan that is `last`, in order.
  virtual std::vector<StepSample> collect() = 0;

  // Milliseconds of the steps collected since the last call, of the last 65,536 at the most.
  virtual std::vector<double> take_step_times() = 0;

  // Runs the ids as one sequence on these pages of this cache, and gives the logits of the tokens
  // [from, to), in host memory, to `use`: those of [first, first + rows) at each call.
  using UseLogits = std::function<void(int64_t first, ConstTensor logits)>;
  virtual void run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to,
                         const KvCache& cache, const std::vector<int32_t>& pages,
                         LinearObserver* observer, const UseLogits& use) = 0;

  // Texts side by side, each a sequence on its own pages: at most as many as slots, and together at
  // most prefill_tokens tokens. Of each the logits of its tokens [from, to), as above.
  struct Text {
    const std::vector<int64_t>* ids;
    int64_t from, to;
    std::vector<int32_t> pages;
  };
  using UseTextLogits = std::function<void(size_t text, int64_t first, ConstTensor logits)>;
  virtual void run_together(const std::vector<Text>& texts, const KvCache& cache,
                            const UseTextLogits& use) = 0;

  // y [tokens, n] of one linear on x [tokens, k], which is rounded to the compute type; in host
  // memory, tokens at most the decoder's limit.
  virtual void run_linear(const Linear& linear, float* y, const float* x, int64_t tokens) = 0;

  // Captured graphs are captured anew when they are needed next. A no-op on the CPU.
  virtual void drop_graphs() {}

  // Engine::step_note and Engine::step_kernel_batch.
  virtual std::string step_note() const { return {}; }
  virtual int64_t step_kernel_batch() const { return 0; }

  // What decode steps run as, or null: for Engine::withhold_step_op.
  virtual StepKernel* step_kernel() const { return nullptr; }

  // Node by node, a step of so many sequences with so many cached and new tokens each, whose pages
  // it overwrites; the median of several. GPU only: Error{kConfig} on the CPU.
  virtual std::vector<StepNode> profile(int64_t batch, int64_t context, int64_t tokens) = 0;
};

std::unique_ptr<StepRunner> make_host_runner(const RunnerModel& model);
std::unique_ptr<StepRunner> make_gpu_runner(const RunnerModel& model);

}  // namespace flexq_ft
