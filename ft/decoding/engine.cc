#include "ft/decoding/engine.h"

#include <algorithm>
#include <set>
#include <utility>

#include "ft/decoding/engine_impl.h"
#include "ft/decoding/engine_options.h"
#include "ft/decoding/memory_plan.h"
#include "ft/decoding/stop.h"
#include "ft/step/step_kernel.h"

namespace flexq_ft {

namespace {

ModelWeights load(const ModelFolder& folder, const EngineOptions& options, int rank) {
  const ThreadCount threads(options.threads);
  LoadOptions load;
  load.dtype = *options.dtype;
  load.scheme = *options.scheme;
  load.policy = *options.policy;
  load.lm_head = *options.lm_head;
  load.rank = rank;
  load.device = options.device;
  if (options.device == Device::kCuda) {
    load.region_bytes = weight_region_bytes(folder, options, rank);
  }
  load.synthetic = options.synthetic_weights;
  load.progress = options.progress;
  return load_weights(folder, load);
}

// Of all ranks: they must admit the same sequences.
int64_t fewest(DeviceComm& comm, int64_t pages) {
  std::vector<int64_t> all(static_cast<size_t>(comm.size()));
  comm.all_gather(Tensor(all.data(), DataType::kUint8, {comm.size(), sizeof(pages)}),
                  ConstTensor(&pages, DataType::kUint8, {sizeof(pages)}), Stream{});
  return *std::min_element(all.begin(), all.end());
}

}  // namespace

Engine::Impl::Impl(ModelFolder opened, const EngineOptions& resolved,
                   std::shared_ptr<DeviceComm> ranks)
    : folder(std::move(opened)),
      options(resolved),
      comm(std::move(ranks)),
      gpu(open_gpu(folder, options, comm->rank())),
      device(gpu ? gpu->compute() : ComputeDevice{}),
      decoder(folder.config, load(folder, options, comm->rank()), decoder_limits(options), comm,
              device),
      cache(make_cache(options.kv_pages + (gpu ? 1 : 0))),
      pages(options.kv_pages),
      sequences(static_cast<size_t>(options.max_batch)),
      runner(make_runner()) {}

KvCache Engine::Impl::make_cache(int64_t page_count) const {
  const std::array<int64_t, 2>& heads = folder.shards.kv_heads[static_cast<size_t>(comm->rank())];
  return KvCache(folder.config.num_layers, page_count, heads[1] - heads[0], folder.config.head_dim,
                 *options.dtype, options.device);
}

std::unique_ptr<StepRunner> Engine::Impl::make_runner() {
  const RunnerModel model{options, folder.config, decoder, cache, *comm, device};
  return gpu ? make_gpu_runner(model) : make_host_runner(model);
}

void Engine::Impl::check_ids(const std::vector<int64_t>& ids, int64_t room) const {
  if (ids.empty()) {
    throw Error(ErrorKind::kConfig, "the prompt is empty", "a sequence starts from a token",
                detail::join("give at least one token, for instance the model's start id ",
                             folder.config.bos_id));
  }
  const int64_t count = static_cast<int64_t>(ids.size());
  if (count + room > options.max_len) {
    throw Error(
        ErrorKind::kConfig,
        detail::join("the prompt has ", count, " tokens, and the context holds ", options.max_len,
                     room > 0 ? ", one new token included" : ""),
        {},
        options.max_len < context_limit(folder.config)
            ? detail::join("a shorter prompt, or --max-len up to ", context_limit(folder.config))
            : "a shorter prompt");
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < folder.config.vocab_size) continue;
    throw Error(ErrorKind::kConfig,
                detail::join("prompt token ", i, " is ", ids[i],
                             ", and the vocabulary has ids 0 … ", folder.config.vocab_size - 1),
                "the ids may come from another model's tokenizer", "use this model's tokenizer");
  }
}

int64_t Engine::Impl::page_tokens(int64_t prompt_tokens, int64_t max_tokens) const {
  return std::min(options.max_len, prompt_tokens + std::min(max_tokens, options.max_len));
}

Sequence& Engine::Impl::in_use(int64_t slot) {
  if (slot >= 0 && slot < options.max_batch && sequences[static_cast<size_t>(slot)].used) {
    return sequences[static_cast<size_t>(slot)];
  }
  throw Error(ErrorKind::kConfig, detail::join("slot ", slot, " is not in use"),
              detail::join("max_batch is ", options.max_batch), "release each slot once");
}

// What comes after the steps in flight, if no sequence ends in them but by its length.
std::vector<StepItem> Engine::Impl::plan_ahead() const {
  std::vector<SlotState> states;
  states.reserve(sequences.size());
  for (const Sequence& sequence : sequences) states.push_back(sequence.state);
  for (const Flight& flight : in_flight) {
    for (size_t i = 0; i < flight.plan.size(); ++i) {
      const StepItem& item = flight.plan[i];
      SlotState& state = states[static_cast<size_t>(item.slot)];
      if (state.arrival != flight.arrivals[i]) continue;
      state.cached = item.begin + item.count;
      if (!item.last) continue;
      ++state.tokens;
      const int64_t most = sequences[static_cast<size_t>(item.slot)].params.max_tokens;
      if (state.tokens - state.prompt >= most || state.tokens >= options.max_len) {
        state.running = false;
      }
    }
  }
  return plan_step(states, options.prefill_tokens);
}

void Engine::Impl::submit(std::vector<StepItem> plan) {
  Flight flight{std::move(plan), {}};
  for (const StepItem& item : flight.plan) {
    flight.arrivals.push_back(sequences[static_cast<size_t>(item.slot)].state.arrival);
  }
  runner->submit(flight.plan, sequences);
  in_flight.push_back(std::move(flight));
}

std::vector<StepOutput> Engine::Impl::commit(const Flight& flight,
                                             const std::vector<StepSample>& samples) {
  std::vector<StepOutput> outputs;
  size_t next = 0;
  for (size_t i = 0; i < flight.plan.size(); ++i) {
    const StepItem& item = flight.plan[i];
    Sequence& sequence = sequences[static_cast<size_t>(item.slot)];
    SlotState& state = sequence.state;
    const StepSample* sample = item.last ? &samples[next++] : nullptr;
    if (!state.running || state.arrival != flight.arrivals[i]) continue;
    if (sample != nullptr && sample->fault) {
      faults.push_back({item.slot, sample->fault});
      state.running = false;
      continue;
    }
    if (sample != nullptr && sample->idle) continue;
    state.cached = item.begin + item.count;
    if (sample == nullptr) continue;
    sequence.tokens.push_back(sample->sampled.token);
    ++state.tokens;
    const FinishReason finish = finish_reason(sequence.tokens, state.prompt, sequence.params,
                                              sequence.end_ids, options.max_len);
    state.running = finish == FinishReason::kNone;
    outputs.push_back({item.slot, sample->sampled.token, sample->sampled.logprob, finish});
  }
  if (faults.empty()) return outputs;
  held_back = std::move(outputs);
  throw_fault();
  return {};
}

void Engine::Impl::throw_fault() {
  if (faults.empty()) return;
  const std::exception_ptr error = faults.front().error;
  faults.pop_front();
  std::rethrow_exception(error);
}

void Engine::Impl::forget(int64_t slot) {
  const auto of_slot = [slot](const auto& entry) { return entry.slot == slot; };
  faults.erase(std::remove_if(faults.begin(), faults.end(), of_slot), faults.end());
  held_back.erase(std::remove_if(held_back.begin(), held_back.end(), of_slot), held_back.end());
  Sequence& sequence = sequences[static_cast<size_t>(slot)];
  pages.give_back(sequence.pages);
  sequence = Sequence();
}

Engine::Engine(const std::string& model_dir, const EngineOptions& asked,
               std::shared_ptr<DeviceComm> comm) {
  ModelFolder folder = open_model(model_dir, asked, comm->size());
  check_ranks(folder, comm->size());
  const int local_ranks = ranks_on_this_host(*comm);
  EngineOptions options = resolve_options(asked, folder, local_ranks);
  use_device_of(options);
  comm->connect();  // before memory is planned: it takes some
  // Read before the collective call, so that no rank has begun to load.
  const size_t available = available_bytes(options.device);
  options.kv_pages =
      fewest(*comm, fit_kv_pages(folder, options, comm->rank(), local_ranks, available));
  const Device device = options.device;
  const std::array<size_t, kMemoryKinds> before = memory_in_use(device);
  impl_ = std::make_unique<Impl>(std::move(folder), options, std::move(comm));
  impl_->options.progress = {};  // nothing is loaded any more
  impl_->memory = memory_in_use(device);
  for (int kind = 0; kind < kMemoryKinds; ++kind) impl_->memory[kind] -= before[kind];
}

Engine::~Engine() = default;

const ModelFolder& Engine::folder() const { return impl_->folder; }

const EngineOptions& Engine::options() const { return impl_->options; }

std::array<size_t, kMemoryKinds> Engine::memory() const { return impl_->memory; }

std::string Engine::gemm_note() const {
  if (!impl_->gpu) return {};
  const std::string note = impl_->gpu->gemm->table_note();
  return impl_->gpu->w6ax ? impl_->gpu->w6ax->table_note() + "; " + note : note;
}

std::vector<std::string> Engine::gemm_choices() const {
  std::vector<std::string> lines;
  if (!impl_->gpu || !impl_->gpu->w6ax) return lines;
  const std::set<int64_t> tokens{1, impl_->options.max_batch, impl_->options.prefill_tokens};
  for (const Linear* linear : impl_->decoder.linears()) {
    const LinearWeight& w = linear->weight();
    if (w.format.scheme != Scheme::kW6Ax) continue;
    const std::string name = w.name.substr(w.name.rfind('.') + 1);
    for (const int64_t m : tokens) {
      const std::string line = detail::join(
          name, " [", w.n, ", ", w.k, "], ", m, m == 1 ? " token" : " tokens", " of ",
          w.format.act_bits, " bits: ", impl_->gpu->w6ax->choice({m, w.n, w.k, w.format.act_bits}));
      if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
    }
  }
  return lines;
}

std::string Engine::step_note() const { return impl_->runner->step_note(); }

int64_t Engine::step_kernel_batch() const { return impl_->runner->step_kernel_batch(); }

void Engine::withhold_step_op(int op, double patience_ms) {
  const Impl::Call call(*impl_);
  StepKernel* const kernel = impl_->runner->step_kernel();
  FLEXQ_FT_CHECK(kernel != nullptr, "no decode step runs as one kernel");
  step::Disturbance disturbance;
  disturbance.withheld_op = op;
  kernel->set_disturbance(disturbance);
  kernel->set_patience_ms(patience_ms);
  impl_->runner->drop_graphs();  // they were captured without it
}

bool Engine::can_admit(int64_t prompt_tokens, int64_t max_tokens) const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  const bool slot_free = std::any_of(impl_->sequences.begin(), impl_->sequences.end(),
                                     [](const Sequence& sequence) { return !sequence.used; });
  return slot_free &&
         pages_for(impl_->page_tokens(prompt_tokens, max_tokens)) <= impl_->pages.available();
}

int64_t Engine::admit(const std::vector<int64_t>& prompt, const SamplingParams& params) {
  const Impl::Call call(*impl_);
  impl_->check_ids(prompt, 1);
  params.validate(impl_->folder.config.vocab_size);
  const int64_t prompt_tokens = static_cast<int64_t>(prompt.size());
  std::vector<Sequence>& all = impl_->sequences;
  const auto free = std::find_if(all.begin(), all.end(), [](const Sequence& s) { return !s.used; });
  if (free == all.end()) {
    throw Error(ErrorKind::kConfig, detail::join("all ", all.size(), " slots are in use"), {},
                "release a finished sequence first, or use a larger --max-batch");
  }
  const int64_t tokens = impl_->page_tokens(prompt_tokens, params.max_tokens);
  if (pages_for(tokens) > impl_->pages.available()) {
    throw Error(ErrorKind::kConfig,
                detail::join("the KV cache has ", impl_->pages.available(),
                             " free pages, and prompt and output need ", pages_for(tokens)),
                {}, "release a finished sequence first, or use a smaller --max-tokens");
  }
  Sequence sequence;
  sequence.tokens = prompt;
  sequence.tokens.reserve(static_cast<size_t>(tokens));
  sequence.params = params;
  if (!params.ignore_eos) {
    sequence.end_ids = params.end_ids.empty() ? impl_->folder.config.eos_ids : params.end_ids;
  }
  sequence.state = {true, impl_->arrivals++, 0, prompt_tokens, prompt_tokens};
  sequence.used = true;
  sequence.pages = impl_->pages.take(tokens);
  *free = std::move(sequence);
  const int64_t slot = free - all.begin();
  try {
    impl_->runner->admitted(slot, *free);
  } catch (...) {  // its words or ids are more than a GPU takes
    impl_->forget(slot);
    throw;
  }
  return slot;
}

std::vector<StepOutput> Engine::step() {
  const Impl::Call call(*impl_);
  Impl& impl = *impl_;
  impl.throw_fault();
  if (!impl.held_back.empty()) return std::exchange(impl.held_back, {});
  while (static_cast<int64_t>(impl.in_flight.size()) < impl.runner->depth()) {
    std::vector<StepItem> plan = impl.plan_ahead();
    if (plan.empty()) break;
    impl.submit(std::move(plan));
  }
  if (impl.in_flight.empty()) return {};
  const std::vector<StepSample> samples = impl.runner->collect();
  const Impl::Flight flight = std::move(impl.in_flight.front());
  impl.in_flight.pop_front();
  return impl.commit(flight, samples);
}

void Engine::release(int64_t slot) {
  // No Impl::Call: destructors release, also after a GPU was lost, when choosing it would throw.
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->in_use(slot);
  impl_->forget(slot);
}

std::vector<double> Engine::take_step_times() {
  const Impl::Call call(*impl_);
  return impl_->runner->take_step_times();
}

void Engine::drop_graphs() {
  const Impl::Call call(*impl_);
  impl_->runner->drop_graphs();
}

std::vector<StepNode> Engine::profile(int64_t batch, int64_t context, int64_t tokens) {
  const Impl::Call call(*impl_);
  for (const Sequence& sequence : impl_->sequences) {
    if (!sequence.used) continue;
    throw Error(ErrorKind::kConfig, "a step is profiled while no slot is in use", {},
                "release the sequences first");
  }
  const EngineOptions& options = impl_->options;
  const int64_t most = tokens == 1 ? batch : options.prefill_tokens;
  if (batch < 1 || batch > options.max_batch || context < 0 || tokens < 1 ||
      batch * tokens > most || context + tokens > options.max_len ||
      batch * pages_for(context + tokens) > impl_->pages.available()) {
    throw Error(
        ErrorKind::kConfig,
        detail::join("a step of ", batch, " sequences of ", context, " cached and ", tokens,
                     " new tokens does not fit: max_batch is ", options.max_batch, ", max_len ",
                     options.max_len, ", prefill_tokens ", options.prefill_tokens, ", ",
                     impl_->pages.available(), " pages of ", kPageTokens, " tokens"));
  }
  return impl_->runner->profile(batch, context, tokens);
}

}  // namespace flexq_ft
