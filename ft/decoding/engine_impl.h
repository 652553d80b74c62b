// The inside of Engine, shared by engine.cc (admit, step, release) and teacher_forcing.cc (forward,
// score, trace, run_linear).
#pragma once

#include <deque>
#include <exception>
#include <mutex>

#include "ft/decoding/engine.h"
#include "ft/decoding/gpu_device.h"
#include "ft/decoding/host.h"
#include "ft/decoding/kv_cache.h"
#include "ft/decoding/step_runner.h"
#include "ft/models/decoder.h"

namespace flexq_ft {

struct Engine::Impl {
  Impl(ModelFolder opened, const EngineOptions& resolved, std::shared_ptr<DeviceComm> ranks);

  KvCache make_cache(int64_t page_count) const;
  std::unique_ptr<StepRunner> make_runner();

  // Public calls that compute begin with this: one call at a time, on the engine's number of
  // threads and its GPU.
  struct Call {
    explicit Call(Impl& impl) : lock(impl.mutex), threads(impl.options.threads) {
      use_device_of(impl.options);
    }
    std::lock_guard<std::mutex> lock;
    ThreadCount threads;
  };

  // A submitted step: its plan, and which sequences it was for (a slot may have a new one by now).
  struct Flight {
    std::vector<StepItem> plan;
    std::vector<int64_t> arrivals;
  };

  void check_ids(const std::vector<int64_t>& ids, int64_t room) const;
  int64_t page_tokens(int64_t prompt_tokens, int64_t max_tokens) const;
  Sequence& in_use(int64_t slot);

  // step(): submits what can be planned, as far ahead as the runner takes it, and collects the
  // oldest. Only commit changes sequences.
  std::vector<StepItem> plan_ahead() const;
  void submit(std::vector<StepItem> plan);
  std::vector<StepOutput> commit(const Flight& flight, const std::vector<StepSample>& samples);

  // A row of a step that failed, and is yet to be thrown.
  struct Fault {
    int64_t slot;
    std::exception_ptr error;
  };
  void throw_fault();         // the first, if there is one
  void forget(int64_t slot);  // frees it, with what step() has still to say of it

  // Runs the ids as one sequence, on pages of its own.
  void run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to,
                 LinearObserver* observer, const StepRunner::UseLogits& use);
  // How many texts, from this one on, go side by side.
  size_t fitting_together(const std::vector<ScoredText>& texts, size_t begin) const;
  // Texts of which each has `pages` yet to get, side by side.
  void run_together(std::vector<StepRunner::Text> texts, const StepRunner::UseTextLogits& use);

  mutable std::mutex mutex;
  ModelFolder folder;
  EngineOptions options;  // resolved
  std::shared_ptr<DeviceComm> comm;
  std::unique_ptr<GpuDevice> gpu;  // null on the CPU
  ComputeDevice device;
  Decoder decoder;
  KvCache cache;
  PagePool pages;
  std::vector<Sequence> sequences;
  std::deque<Flight> in_flight;
  std::deque<Fault> faults;
  std::vector<StepOutput> held_back;  // of a step one of whose rows failed; given after the faults
  int64_t arrivals = 1;               // a slot without a sequence has 0
  std::array<size_t, kMemoryKinds> memory{};
  std::unique_ptr<StepRunner> runner;  // last: its graphs end before what they use
};

}  // namespace flexq_ft
