#include "ft/decoding/engine.h"

#include <algorithm>
#include <utility>

#include "ft/decoding/engine_impl.h"
#include "ft/decoding/engine_options.h"
#include "ft/decoding/memory_plan.h"
#include "ft/decoding/stop.h"

namespace flexq_ft {

namespace {

ModelWeights load(const ModelFolder& folder, const EngineOptions& options, int rank) {
  const ThreadCount threads(options.threads);
  return load_weights(folder, {*options.dtype, *options.scheme, *options.policy, rank});
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
      decoder(folder.config, load(folder, options, comm->rank()), decoder_limits(options), comm,
              ComputeDevice{}),
      cache(make_cache(options.kv_pages)),
      pages(options.kv_pages),
      batch(decoder.limits().tokens, options.max_batch, pages_for(options.max_len)),
      logits(DataType::kFp32, Shape{decoder.limits().logit_rows, folder.config.vocab_size},
             MemoryKind::kActivations),
      sequences(static_cast<size_t>(options.max_batch)) {}

KvCache Engine::Impl::make_cache(int64_t page_count) const {
  const std::array<int64_t, 2>& heads = folder.shards.kv_heads[static_cast<size_t>(comm->rank())];
  return KvCache(folder.config.num_layers, page_count, heads[1] - heads[0], folder.config.head_dim,
                 *options.dtype);
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

std::vector<StepItem> Engine::Impl::plan() const {
  std::vector<SlotState> states;
  states.reserve(sequences.size());
  for (const Sequence& sequence : sequences) states.push_back(sequence.state);
  return plan_step(states, options.prefill_tokens);
}

std::vector<Sampled> Engine::Impl::compute(const std::vector<StepItem>& plan) {
  batch.clear();
  std::vector<SampleRow> rows;
  for (const StepItem& item : plan) {
    const Sequence& sequence = sequences[static_cast<size_t>(item.slot)];
    batch.add(sequence.tokens, item.begin, item.count, sequence.pages);
    if (!item.last) continue;
    batch.want_logits(batch.tokens() - 1);
    rows.push_back({item.slot, &sequence.params, &sequence.end_ids, &sequence.tokens,
                    sequence.state.tokens - sequence.state.prompt});
  }
  decoder.forward(batch.view(), cache.layers(), nullptr);
  if (rows.empty()) return {};
  const Tensor out =
      logits.tensor(DataType::kFp32, {static_cast<int64_t>(rows.size()), folder.config.vocab_size});
  decoder.logits(out, batch.logit_rows(), nullptr);
  std::vector<Sampled> sampled = sample_rows(out, rows);
  // Every rank has the same logits and draws the same, but for the last bit of exp on unlike hosts;
  // rank 0's tokens are everybody's.
  comm->broadcast(sampled.data(), sampled.size() * sizeof(Sampled), 0);
  return sampled;
}

std::vector<StepOutput> Engine::Impl::commit(const std::vector<StepItem>& plan,
                                             const std::vector<Sampled>& sampled) {
  std::vector<StepOutput> outputs;
  outputs.reserve(sampled.size());
  for (const StepItem& item : plan) {
    Sequence& sequence = sequences[static_cast<size_t>(item.slot)];
    SlotState& state = sequence.state;
    state.cached = item.begin + item.count;
    if (!item.last) continue;
    const Sampled& token = sampled[outputs.size()];
    sequence.tokens.push_back(token.token);
    ++state.tokens;
    const FinishReason finish = finish_reason(sequence.tokens, state.prompt, sequence.params,
                                              sequence.end_ids, options.max_len);
    state.running = finish == FinishReason::kNone;
    outputs.push_back({item.slot, token.token, token.logprob, finish});
  }
  return outputs;
}

Engine::Engine(const std::string& model_dir, const EngineOptions& asked,
               std::shared_ptr<DeviceComm> comm) {
  ModelFolder folder = open_model_folder(model_dir);
  check_ranks(folder, comm->size());
  // Read before the collective call, so that no rank has begun to load.
  const size_t available = available_memory();
  const int local_ranks = ranks_on_this_host(*comm);
  EngineOptions options = resolve_options(asked, folder, local_ranks);
  options.kv_pages =
      fewest(*comm, fit_kv_pages(folder, options, comm->rank(), local_ranks, available));
  const std::array<size_t, kMemoryKinds> before = memory_in_use();
  impl_ = std::make_unique<Impl>(std::move(folder), options, std::move(comm));
  impl_->memory = memory_in_use();
  for (int kind = 0; kind < kMemoryKinds; ++kind) impl_->memory[kind] -= before[kind];
}

Engine::~Engine() = default;

const ModelFolder& Engine::folder() const { return impl_->folder; }

const EngineOptions& Engine::options() const { return impl_->options; }

std::array<size_t, kMemoryKinds> Engine::memory() const { return impl_->memory; }

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
  return free - all.begin();
}

std::vector<StepOutput> Engine::step() {
  const Impl::Call call(*impl_);
  const std::vector<StepItem> plan = impl_->plan();
  if (plan.empty()) return {};
  return impl_->commit(plan, impl_->compute(plan));
}

void Engine::release(int64_t slot) {
  const Impl::Call call(*impl_);
  Sequence& sequence = impl_->in_use(slot);
  impl_->pages.give_back(sequence.pages);
  sequence = Sequence();
}

}  // namespace flexq_ft
