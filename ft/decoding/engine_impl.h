// The inside of Engine, shared by engine.cc (admit, step, release) and teacher_forcing.cc (forward,
// score, trace, run_linear).
#pragma once

#include <functional>
#include <mutex>

#include "ft/decoding/engine.h"
#include "ft/decoding/host.h"
#include "ft/decoding/kv_cache.h"
#include "ft/decoding/sampler.h"
#include "ft/decoding/scheduler.h"
#include "ft/decoding/step_batch.h"
#include "ft/models/decoder.h"

namespace flexq_ft {

// One slot's sequence.
struct Sequence {
  SlotState state;
  std::vector<int64_t> tokens;  // prompt and output
  std::vector<int32_t> pages;
  std::vector<int64_t> end_ids;  // that end it; none where they are ignored
  SamplingParams params;
  bool used = false;  // from admit to release
};

struct Engine::Impl {
  Impl(ModelFolder opened, const EngineOptions& resolved, std::shared_ptr<DeviceComm> ranks);

  KvCache make_cache(int64_t page_count) const;

  // Every public call begins with this: one call at a time, on the engine's number of threads.
  struct Call {
    explicit Call(Impl& impl) : lock(impl.mutex), threads(impl.options.threads) {}
    std::lock_guard<std::mutex> lock;
    ThreadCount threads;
  };

  void check_ids(const std::vector<int64_t>& ids, int64_t room) const;
  int64_t page_tokens(int64_t prompt_tokens, int64_t max_tokens) const;
  Sequence& in_use(int64_t slot);

  // step(), in its three parts. Only the last changes sequences.
  std::vector<StepItem> plan() const;
  std::vector<Sampled> compute(const std::vector<StepItem>& plan);
  std::vector<StepOutput> commit(const std::vector<StepItem>& plan,
                                 const std::vector<Sampled>& sampled);

  // Runs the ids as one sequence on its own cache, and gives the logits of tokens [first, first +
  // rows) to `use`, for the first `wanted` tokens.
  using UseLogits = std::function<void(int64_t first, ConstTensor logits)>;
  void run_alone(const std::vector<int64_t>& ids, int64_t wanted, LinearObserver* observer,
                 const UseLogits& use);

  mutable std::mutex mutex;
  ModelFolder folder;
  EngineOptions options;  // resolved
  std::shared_ptr<DeviceComm> comm;
  Decoder decoder;
  KvCache cache;
  PagePool pages;
  StepBatch batch;
  Buffer logits;  // [logit rows, vocab] fp32
  std::vector<Sequence> sequences;
  int64_t arrivals = 0;
  std::array<size_t, kMemoryKinds> memory{};
};

}  // namespace flexq_ft
