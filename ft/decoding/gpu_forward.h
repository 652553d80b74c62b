// Forward passes of texts that have no slot, on a GPU: their inputs come from the host and their
// logits go there. Scoring, traces and profiles are made of these.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "ft/decoding/gpu_slots.h"
#include "ft/decoding/pinned.h"
#include "ft/decoding/step_profile.h"
#include "ft/decoding/step_runner.h"

namespace flexq_ft {

class GpuForward {
 public:
  using Text = StepRunner::Text;
  using UseLogits = StepRunner::UseLogits;
  using UseTextLogits = StepRunner::UseTextLogits;

  // finish: waits for the stream, and names what it waits for where that fails. It, the model and
  // the slots, whose input tensors are borrowed, must live as long as this.
  GpuForward(const RunnerModel& model, const GpuSlots& slots, Stream stream,
             std::function<void(const char*)> finish)
      : model_(model), slots_(slots), stream_(stream), finish_(std::move(finish)) {}

  // Each as StepRunner's.
  void run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to, const KvCache& cache,
                 const std::vector<int32_t>& pages, LinearObserver* observer, const UseLogits& use);
  void run_together(const std::vector<Text>& texts, const KvCache& cache, const UseTextLogits& use);
  void run_linear(const Linear& linear, float* y, const float* x, int64_t tokens);
  std::vector<StepNode> profile(int64_t batch, int64_t context, int64_t tokens);

 private:
  // Tokens [begin, begin + count) of a sequence whose earlier ones are cached.
  struct Piece {
    const std::vector<int64_t>* ids;
    int64_t begin, count;
    const std::vector<int32_t>* pages;
  };
  RaggedBatch put_pieces(const std::vector<Piece>& pieces);

  // Logits that are wanted: of a text's token, which is a row of the step.
  struct Row {
    size_t text;
    int64_t token;
    int32_t row;
  };
  Pinned pinned_logits(int64_t rows) const;
  void give_logits(const std::vector<Row>& rows, const Pinned& host, LinearObserver* observer,
                   const UseTextLogits& use);
  void put_dummies(int64_t batch, int64_t context, int64_t tokens);

  const RunnerModel& model_;
  const GpuSlots& slots_;
  Stream stream_;
  std::function<void(const char*)> finish_;
};

}  // namespace flexq_ft
