// StepRunner on a GPU. Slots live on the device (GpuSlots): a step reads its tokens there and
// leaves its samples there, so the next step is launched without waiting for the host. Steps of
// decoding sequences only are CUDA graphs, one per batch bucket, captured after a first eager step.
#include <algorithm>
#include <map>
#include <utility>

#include "ft/comm/deadline.h"
#include "ft/core/cuda.h"
#include "ft/decoding/gpu_device.h"
#include "ft/decoding/gpu_forward.h"
#include "ft/decoding/gpu_slots.h"
#include "ft/decoding/pinned.h"
#include "ft/decoding/step_path.h"

namespace flexq_ft {

namespace {

// Two steps: while one runs the next is in the queue, and the host has the time of a step to spare.
constexpr int64_t kDepth = 2;

GpuSlotSizes sizes_of(const RunnerModel& model) {
  const DecoderLimits& limits = model.decoder.limits();
  return {model.options.max_batch, model.options.max_len, limits.tokens, limits.logit_rows,
          model.config.vocab_size};
}

// A decode graph, and the items that it reads.
struct DecodeGraph {
  explicit DecodeGraph(int64_t bucket)
      : items(DataType::kInt32, {bucket, kStepInputInts}, MemoryKind::kActivations, Device::kCuda) {
  }
  Buffer items;
  std::vector<int32_t> slots;  // that items holds now
  bool ran = false;            // eagerly, so that everything is loaded
  std::unique_ptr<cuda::Graph> graph;
};

// What a step that was submitted leaves on the host.
struct Landing {
  explicit Landing(int64_t rows) : samples(static_cast<size_t>(rows) * sizeof(DeviceSample)) {}
  Pinned samples;
  cuda::Event begin{true};
  cuda::Event end{true};
  int64_t rows = 0;
  std::vector<SamplingParams> params;  // of the rows, for the texts of faults
};

class GpuRunner final : public StepRunner {
 public:
  explicit GpuRunner(const RunnerModel& model)
      : model_(model),
        stream_(model.device.stream),
        slots_(sizes_of(model), stream_),
        path_(model_, stream_),
        forward_(model_, slots_, stream_, [this](const char* what) { finish(what); }) {
    for (int64_t n = 1; n <= model.options.max_batch; ++n) {
      decodes_.try_emplace(bucket_for(n), bucket_for(n));
    }
    for (int64_t i = 0; i < kDepth; ++i) {
      landings_.push_back(std::make_unique<Landing>(model.decoder.limits().logit_rows));
    }
    cuda::synchronize(stream_);
  }

  ~GpuRunner() override {
    try {
      use_device_of(model_.options);   // a destructor may run in any thread
      finish("what is still to run");  // nothing may run in memory that is about to go
    } catch (const Error&) {           // it was thrown where it happened
    }
  }

  int64_t depth() const override { return kDepth; }

  void admitted(int64_t slot, const Sequence& sequence) override {
    finish("the step before an admission");  // a copy would wait for it without a deadline
    slots_.admit(slot, sequence, stream_);
  }

  void submit(const std::vector<StepItem>& plan, const std::vector<Sequence>& sequences) override {
    Landing& landing = *landings_[static_cast<size_t>(submitted_ % kDepth)];
    landing.params.clear();
    for (const StepItem& item : plan) {
      if (item.last) landing.params.push_back(sequences[static_cast<size_t>(item.slot)].params);
    }
    const bool decode = std::all_of(plan.begin(), plan.end(), [&](const StepItem& item) {
      return item.last && item.count == 1;
    });
    landing.rows = static_cast<int64_t>(landing.params.size());
    watched([&] {
      landing.begin.record(stream_);
      if (decode) {
        run_decode(plan);
      } else {
        run_ragged(plan, landing.rows);
      }
      cuda::copy(landing.samples.as<void>(), slots_.samples(landing.rows).raw(),
                 static_cast<size_t>(landing.rows) * sizeof(DeviceSample), stream_);
      landing.end.record(stream_);
    });
    ++submitted_;
  }

  std::vector<StepSample> collect() override {
    Landing& landing = *landings_[static_cast<size_t>(collected_ % kDepth)];
    watched([&] { wait_for(landing.end, model_.comm, detail::join("step ", collected_)); });
    const double ms = landing.end.since_ms(landing.begin);
    ++collected_;
    times_.add(ms);
    std::vector<StepSample> out(static_cast<size_t>(landing.rows));
    for (size_t row = 0; row < out.size(); ++row) {
      out[row] = read(landing.samples.as<DeviceSample>()[row], landing.params[row],
                      model_.config.vocab_size);
    }
    return out;
  }

  std::vector<double> take_step_times() override { return times_.take(); }

  std::string step_note() const override { return path_.note(); }
  int64_t step_kernel_batch() const override { return path_.most(); }
  StepKernel* step_kernel() const override { return path_.kernel(1); }

  void drop_graphs() override {
    finish("the last step");
    for (auto& [bucket, decode] : decodes_) decode.graph.reset();
  }

  void run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to, const KvCache& cache,
                 const std::vector<int32_t>& pages, LinearObserver* observer,
                 const UseLogits& use) override {
    forward_.run_alone(ids, from, to, cache, pages, observer, use);
  }
  void run_together(const std::vector<Text>& texts, const KvCache& cache,
                    const UseTextLogits& use) override {
    forward_.run_together(texts, cache, use);
  }
  void run_linear(const Linear& linear, float* y, const float* x, int64_t tokens) override {
    forward_.run_linear(linear, y, x, tokens);
  }
  std::vector<StepNode> profile(int64_t batch, int64_t context, int64_t tokens) override {
    return forward_.profile(batch, context, tokens);
  }

 private:
  static StepSample read(const DeviceSample& sample, const SamplingParams& params, int64_t vocab) {
    StepSample out;
    out.idle = sample.status == kSampleIdle;
    out.sampled = {sample.token, sample.logprob};
    if (out.idle || sample.status == kSampleOk) return out;
    try {
      throw_sampling_fault(sample, params, vocab);
    } catch (const Error& error) {
      out.fault = std::make_exception_ptr(
          Error(error.kind(), detail::join("slot ", sample.slot, ": ", error.what()), error.cause(),
                error.hint()));
    }
    return out;
  }

  // Waits for what was put on the stream, with the deadline of everything that needs other ranks.
  void finish(const char* what) {
    cuda::Event event;
    event.record(stream_);
    watched([&] { wait_for(event, model_.comm, what); });
  }

  // Where the device fails because the step kernel gave up, the error says in which op.
  template <typename Work>
  void watched(const Work& work) {
    try {
      work();
    } catch (const Error&) {
      path_.throw_fault();
      throw;
    }
  }

  // Sequences of a decode step are padded to a power of two, or to all slots; those that the step
  // kernel takes, not beyond what it takes.
  int64_t bucket_for(int64_t sequences) const {
    const int64_t most = sequences <= path_.most() ? path_.most() : model_.options.max_batch;
    int64_t bucket = 1;
    while (bucket < sequences) bucket *= 2;
    return std::min(bucket, most);
  }

  // The whole step: inputs, forward and logits of the rows, samples.
  void enqueue(ConstTensor items, int64_t tokens, int64_t rows, int64_t decodes, int64_t longest) {
    const int64_t sequences = items.dim(0);
    const StepInputs inputs = slots_.inputs(sequences, tokens, rows);
    invokeStepInputs(inputs, items, slots_.slots(), model_.cache.last_page(), stream_);
    const RaggedBatch batch = slots_.batch(sequences, tokens, decodes, longest);
    const bool is_decode = decodes == sequences && rows == sequences;
    if (StepKernel* const kernel = is_decode ? path_.kernel(sequences) : nullptr) {
      kernel->run(slots_.logits(rows), batch, stream_);
    } else {
      model_.decoder.forward(batch, model_.cache.layers(), {});
      if (rows == 0) return;
      model_.decoder.logits(slots_.logits(rows), inputs.token_rows, {});
    }
    slots_.sample(rows, stream_);
  }

  void run_decode(const std::vector<StepItem>& plan) {
    const int64_t bucket = bucket_for(static_cast<int64_t>(plan.size()));
    DecodeGraph& decode = decodes_.at(bucket);
    set_slots(decode, bucket, plan);
    const auto work = [&] { enqueue(decode.items.tensor(), bucket, bucket, bucket, 0); };
    if (!model_.options.graphs || !decode.ran) {
      work();
      decode.ran = true;
      return;
    }
    if (!decode.graph) {
      auto graph = std::make_unique<cuda::Graph>();
      graph->capture(stream_, work);
      decode.graph = std::move(graph);
    }
    decode.graph->launch(stream_);
  }

  // The items of a decode step change only when its slots do.
  void set_slots(DecodeGraph& decode, int64_t bucket, const std::vector<StepItem>& plan) {
    std::vector<int32_t> slots;
    for (const StepItem& item : plan) slots.push_back(static_cast<int32_t>(item.slot));
    slots.resize(static_cast<size_t>(bucket), -1);
    if (slots == decode.slots) return;
    std::vector<StepInputItem> items(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      const int32_t at = static_cast<int32_t>(i);
      items[i] = {slots[i], StepInputItem::kNewestToken, 1, at, at};
    }
    put_items(decode.items.tensor(), items);
    decode.slots = std::move(slots);
  }

  // From pageable memory: the copy has left it when the call returns.
  void put_items(Tensor to, const std::vector<StepInputItem>& items) {
    cuda::copy(to.raw(), items.data(), items.size() * sizeof(StepInputItem), stream_);
  }

  void run_ragged(const std::vector<StepItem>& plan, int64_t rows) {
    std::vector<StepInputItem> items;
    int32_t first = 0;
    int32_t row = 0;
    int64_t decodes = 0;
    int64_t longest = 0;
    for (const StepItem& item : plan) {
      const auto count = static_cast<int32_t>(item.count);
      // A single last token may follow a step whose tokens the host does not know yet.
      const bool newest = item.last && count == 1;
      items.push_back({static_cast<int32_t>(item.slot),
                       newest ? StepInputItem::kNewestToken : static_cast<int32_t>(item.begin),
                       count, first, item.last ? row++ : -1});
      first += count;
      if (count == 1 && decodes + 1 == static_cast<int64_t>(items.size())) {
        ++decodes;
      } else {
        longest = std::max(longest, item.count);
      }
    }
    const Tensor on_gpu = slots_.items(static_cast<int64_t>(items.size()));
    put_items(on_gpu, items);
    enqueue(on_gpu, first, rows, decodes, longest);
  }

  RunnerModel model_;
  Stream stream_;
  GpuSlots slots_;
  StepPath path_;
  GpuForward forward_;
  std::map<int64_t, DecodeGraph> decodes_;  // by bucket
  std::vector<std::unique_ptr<Landing>> landings_;
  int64_t submitted_ = 0;
  int64_t collected_ = 0;
  StepTimes times_;
};

}  // namespace

std::unique_ptr<StepRunner> make_gpu_runner(const RunnerModel& model) {
  return std::make_unique<GpuRunner>(model);
}

}  // namespace flexq_ft
