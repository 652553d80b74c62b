// Engine: one model on one rank, driven step by step. Every rank of a tensor-parallel run makes the
// same calls in the same order and sees the same tokens.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ft/comm/device_comm.h"
#include "ft/core/buffer.h"
#include "ft/kernels/sampling.h"
#include "ft/weights/model_folder.h"
#include "ft/weights/weight_reader.h"

namespace flexq_ft {

// Whether a GPU's decode step runs as one kernel (ft/step/step_kernel.h) or op by op. kAuto: as one
// kernel where it takes model and GPU, for batches of a size that it was measured to be faster at;
// kOn: for every batch that it takes, and Error{kConfig} if it takes none; kOff: never.
enum class StepKernelChoice : uint8_t { kAuto, kOn, kOff };

// What is absent is as the folder has it.
struct EngineOptions {
  std::optional<DataType> dtype;      // compute type
  std::optional<Scheme> scheme;       // the folder's, or a w8 scheme on float files
  std::optional<Policy> policy;       // w6ax only
  std::optional<HeadFormat> lm_head;  // another than the folder's with synthetic weights only
  int64_t max_len = 0;                // longest prompt + output; 0: the model's positions
  int64_t max_batch = 8;              // sequences that are decoded together
  int64_t kv_pages = 0;               // pages of the KV cache; 0: max_batch x max_len, or what fits
  int64_t prefill_tokens = 0;         // most prompt tokens of one step; 0: 512, on a GPU 2048
  int threads = 0;                    // 0: the cores of this host / the ranks on it
  Device device = Device::kCpu;
  int gpu = 0;         // which, on a GPU
  bool graphs = true;  // on a GPU: decode steps as CUDA graphs
  StepKernelChoice step_kernel = {};
  bool synthetic_weights = false;  // random weights in the runtime layout; model_dir may be an INI
  LoadProgress progress = {};      // of the weight files; may be empty
};

enum class FinishReason : uint8_t { kNone, kStop, kLength };

struct StepOutput {
  int64_t slot = 0;
  int64_t token = 0;
  float logprob = 0.0f;
  FinishReason finish = FinishReason::kNone;
};

// What one linear saw and gave, for replay (docs/numerics.md).
struct LinearTrace {
  std::string name;
  std::vector<float> x;  // [tokens, k], after rounding to the compute type
  std::vector<float> y;  // [tokens, n], fp32
  int64_t tokens = 0, k = 0, n = 0;
};

// One node of a step (Engine::profile): its op, its milliseconds with full edges on both
// sides, and the bytes that it cannot but read.
struct StepNode {
  std::string op;
  double ms = 0.0;
  size_t bytes = 0;
};

// Calls are serialised. A call that throws changes nothing: no sequence has advanced, and the
// engine goes on (with several ranks only if all of them threw).
class Engine {
 public:
  // comm decides the rank; its size must be the folder's. Throws Error{kConfig} on options that the
  // folder does not allow, Error{kWeight} on a folder that is not sound, and Error{kOutOfMemory}
  // before anything is loaded if the host has not the memory for one sequence of max_len.
  Engine(const std::string& model_dir, const EngineOptions& options,
         std::shared_ptr<DeviceComm> comm);
  ~Engine();

  const ModelFolder& folder() const;
  const EngineOptions& options() const;             // resolved: every field is set
  std::array<size_t, kMemoryKinds> memory() const;  // bytes that this engine holds, by MemoryKind

  // On a GPU: which tables of measured GEMM choices are in use, or why none; empty on the CPU.
  std::string gemm_note() const;

  // A w6ax model on a GPU: the kernel of each of its products of six-bit weights at one token, at
  // max_batch and at prefill_tokens, and why: "qkv [12288, 4096], 1 token of 6 bits: stream …
  // (table)". Layers with the same products have one line. Otherwise empty.
  std::vector<std::string> gemm_choices() const;

  // On a GPU: which decode steps run as one kernel, or why they run op by op; empty on the CPU.
  std::string step_note() const;

  // Sequences of the largest decode step that runs as one kernel; 0: none does.
  int64_t step_kernel_batch() const;

  // For tests: the step kernel, which there must be, withholds the results of an op (counted
  // through the whole step), and its waits end after so long. Their error is step()'s, and loses
  // the GPU's context.
  void withhold_step_op(int op, double patience_ms);

  // A slot for a new sequence, whose prompt is prefilled by the next steps. Throws Error{kConfig}
  // if the prompt is empty, holds an id outside the vocabulary, or does not fit in max_len with at
  // least one new token. can_admit says whether a slot and pages for prompt + max_tokens are free
  // now.
  bool can_admit(int64_t prompt_tokens, int64_t max_tokens) const;
  int64_t admit(const std::vector<int64_t>& prompt, const SamplingParams& params);

  // One forward pass over what is admitted: prompt chunks and one token of each running sequence.
  // Returns one output for each sequence that produced a token. A finished sequence stays in its
  // slot, idle, until release. Empty when nothing runs, and after a step that only took in a part
  // of a prompt. Throws Error{kWeight} naming the slot if a model's logits are not finite; such a
  // slot must be released before the next step.
  std::vector<StepOutput> step();

  void release(int64_t slot);

  // Milliseconds of the steps that step() returned since the last call: on a GPU between its own
  // first and last work.
  std::vector<double> take_step_times();

  // GPU: captured steps are captured anew when they are needed next.
  void drop_graphs();

  // GPU: a step of so many sequences with so many cached and so many new tokens each (1: decode),
  // node by node: op by op, also where step() runs one kernel. Throws Error{kConfig} while slots
  // are in use.
  std::vector<StepNode> profile(int64_t batch, int64_t context, int64_t tokens);

  // Teacher-forced logits [tokens, vocab] of one sequence of at most max_len tokens. Works whether
  // or not slots are in use, and uses none.
  std::vector<float> forward(const std::vector<int64_t>& ids);

  // As forward, but of the tokens from `first` on only, each given those before it: its
  // log-probability, and the most likely id. Error{kConfig} unless 1 <= first <= tokens.
  struct Score {
    std::vector<float> logprobs;  // [tokens - first]
    std::vector<int64_t> argmax;  // [tokens - first]
  };
  Score score(const std::vector<int64_t>& ids, int64_t first = 1);

  // The same of several texts, as many side by side as slots and prefill_tokens allow.
  struct ScoredText {
    std::vector<int64_t> ids;
    int64_t first = 1;
  };
  std::vector<Score> score(const std::vector<ScoredText>& texts);

  // Replay: forward with every linear's input and output recorded (this rank's columns; for
  // row-parallel ones the rank's share of the sum, before bias); one linear on given input x
  // [tokens, k], which is rounded to the compute type.
  std::vector<LinearTrace> trace(const std::vector<int64_t>& ids);
  std::vector<float> run_linear(const std::string& name, const std::vector<float>& x,
                                int64_t tokens);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexq_ft
