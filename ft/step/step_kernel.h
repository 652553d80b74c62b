// StepKernel: a whole decode step of up to eight sequences as one launch (step_kernel.cuh), from
// the newest tokens' ids to their logits. What it does not take runs op by op (Decoder).
#pragma once

#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/core/model_config.h"
#include "ft/kernels/paged_kv.h"
#include "ft/step/args.h"
#include "ft/weights/model_weights.h"

namespace flexq_ft {

// A model on the current GPU; everything outlives the StepKernel made of it.
struct StepModel {
  const ModelConfig& config;
  const ModelWeights& weights;
  ConstTensor rope;  // [positions, head_dim] fp32, or undefined
  const std::vector<KvPages>& cache;
  DataType dtype = DataType::kFp16;
  int64_t max_len = 0;
};

// Stages of the ring that may be on their way, and fewer once so many are filled (step/ring.cuh).
// Made all odd, or in a short ring all even.
struct StepFlow {
  int in_flight = 5;
  int in_flight_filled = 3;
  int filled = 9;

  static StepFlow of(const cuda::DeviceInfo& device);
};

class StepKernel {
 public:
  // Why this model cannot run as one kernel on that device, as the end of a sentence ("…: ");
  // empty: it can.
  static std::string refusal(const StepModel& model, const cuda::DeviceInfo& device);

  // refusal() must be empty.
  StepKernel(const StepModel& model, const cuda::DeviceInfo& device, Stream stream);
  ~StepKernel();
  StepKernel(const StepKernel&) = delete;
  StepKernel& operator=(const StepKernel&) = delete;

  // Batches of up to so many sequences fit into a multiprocessor's shared memory.
  int64_t most_tokens() const { return most_tokens_; }

  // Of the ring in a step of so many tokens: what they need is not the ring's.
  int ring_stages(int64_t tokens) const;

  // logits [sequences, vocab] fp32 of the newest token of each sequence, whose K and V join the
  // cache. The batch has one token for each sequence: 1 … most_tokens().
  void run(Tensor logits, const RaggedBatch& batch, Stream stream);

  // Once the device has failed: throws Error{kDevice} that names op, layer and block if a wait of
  // the kernel lasted too long; else returns.
  void throw_fault() const;

  void set_flow(const StepFlow& flow) { flow_ = flow; }
  // As a step of so many tokens has it, whose ring may be too short for what is set.
  StepFlow flow(int64_t tokens) const;
  // Blocks in pairs (step/pair.cuh) for several sequences: where the GPU takes them so, unless set
  // otherwise. Results are the same.
  bool pairs() const { return pairs_; }
  void set_pairs(bool pairs) { pairs_ = pairs; }
  void set_patience_ms(double ms) { patience_ms_ = ms; }
  void set_disturbance(const step::Disturbance& disturbance) { disturbance_ = disturbance; }

  // [ops, blocks, kMarks] 64-bit, on the GPU: the steps to come leave when they passed where;
  // undefined: they do not.
  void set_trace(Tensor trace) { trace_ = static_cast<unsigned long long*>(trace.raw()); }
  int64_t ops_of_step() const { return model_.config.num_layers * step::kLayerOps + 1; }

  // What blocks pass to each other, for tests.
  Tensor exchange() const { return exchange_.tensor(); }

 private:
  step::SharedSizes shared_sizes(int tokens) const;
  std::vector<step::Op> ops(Stream stream);

  StepModel model_;
  cuda::DeviceInfo device_;
  step::Format format_ = step::Format::kFloat;
  int max_parts_ = 1;
  int64_t most_tokens_ = 0;
  StepFlow flow_;
  bool pairs_ = false;
  double patience_ms_ = 5000.0;
  step::Disturbance disturbance_;
  Buffer ops_, maps_, plan_, exchange_, counters_;
  unsigned long long* trace_ = nullptr;
  step::FaultWord* fault_ = nullptr;  // pinned
};

}  // namespace flexq_ft
