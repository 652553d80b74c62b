// StepRunner on a GPU. Slots live on the device (GpuSlots): a step reads its tokens there and
// leaves its samples there, so the next step is launched without waiting for the host. Steps of
// decoding sequences only are CUDA graphs, one per batch bucket, captured after a first eager step.
#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "ft/comm/deadline.h"
#include "ft/core/cuda.h"
#include "ft/decoding/gpu_device.h"
#include "ft/decoding/gpu_slots.h"
#include "ft/decoding/pinned.h"
#include "ft/decoding/step_path.h"
#include "ft/decoding/step_profile.h"

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
        path_(model_, stream_) {
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
                 const UseLogits& use) override;
  void run_together(const std::vector<Text>& texts, const KvCache& cache,
                    const UseTextLogits& use) override;
  void run_linear(const Linear& linear, float* y, const float* x, int64_t tokens) override;
  std::vector<StepNode> profile(int64_t batch, int64_t context, int64_t tokens) override;

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

  int32_t scratch_page() const {
    return static_cast<int32_t>(model_.cache.layers()[0].k.dim(0) - 1);
  }

  // The whole step: inputs, forward and logits of the rows, samples.
  void enqueue(ConstTensor items, int64_t tokens, int64_t rows, int64_t decodes, int64_t longest) {
    const int64_t sequences = items.dim(0);
    const StepInputs inputs = slots_.inputs(sequences, tokens, rows);
    invokeStepInputs(inputs, items, slots_.slots(), scratch_page(), stream_);
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

  // Host-made inputs of one chunk of a sequence that has no slot.
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

  RunnerModel model_;
  Stream stream_;
  GpuSlots slots_;
  StepPath path_;
  std::map<int64_t, DecodeGraph> decodes_;  // by bucket
  std::vector<std::unique_ptr<Landing>> landings_;
  int64_t submitted_ = 0;
  int64_t collected_ = 0;
  StepTimes times_;
};

// Always as prefill: a token's bits must not depend on how the chunks were cut.
RaggedBatch GpuRunner::put_pieces(const std::vector<Piece>& pieces) {
  const auto sequences = static_cast<int64_t>(pieces.size());
  std::vector<int32_t> ids, positions, offsets{0}, context, pages;
  int64_t longest = 0;
  for (const Piece& piece : pieces) {
    for (int64_t i = piece.begin; i < piece.begin + piece.count; ++i) {
      ids.push_back(static_cast<int32_t>((*piece.ids)[static_cast<size_t>(i)]));
      positions.push_back(static_cast<int32_t>(i));
    }
    offsets.push_back(static_cast<int32_t>(ids.size()));
    context.push_back(static_cast<int32_t>(piece.begin));
    longest = std::max(longest, piece.count);
  }
  const auto tokens = static_cast<int64_t>(ids.size());
  const StepInputs to = slots_.inputs(sequences, tokens, 0);
  const int64_t row = to.pages.dim(1);
  for (const Piece& piece : pieces) {
    FLEXQ_FT_CHECK_LE(static_cast<int64_t>(piece.pages->size()), row, "pages of a sequence");
    pages.insert(pages.end(), piece.pages->begin(), piece.pages->end());
    pages.resize(static_cast<size_t>((&piece - pieces.data() + 1) * row), 0);
  }
  const auto put = [&](Tensor tensor, const std::vector<int32_t>& values) {
    FLEXQ_FT_CHECK_LE(values.size() * sizeof(int32_t), tensor.bytes(), "inputs of a chunk");
    cuda::copy(tensor.raw(), values.data(), values.size() * sizeof(int32_t), stream_);
  };
  put(to.ids, ids);
  put(to.positions, positions);
  put(to.offsets, offsets);
  put(to.context, context);
  put(to.pages, pages);
  finish("the inputs of a chunk");
  return slots_.batch(sequences, tokens, 0, longest);
}

void GpuRunner::run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to,
                          const KvCache& cache, const std::vector<int32_t>& pages,
                          LinearObserver* observer, const UseLogits& use) {
  const int64_t total = static_cast<int64_t>(ids.size());
  const Pinned host = pinned_logits(to - from);
  for (int64_t begin = 0; begin < total; begin += model_.options.prefill_tokens) {
    const int64_t count = std::min(model_.options.prefill_tokens, total - begin);
    model_.decoder.forward(put_pieces({{&ids, begin, count, &pages}}), cache.layers(),
                           {observer, nullptr});
    std::vector<Row> rows;
    for (int64_t i = std::max(begin, from); i < std::min(begin + count, to); ++i) {
      rows.push_back({0, i, static_cast<int32_t>(i - begin)});
    }
    give_logits(rows, host, observer,
                [&](size_t, int64_t first, ConstTensor logits) { use(first, logits); });
  }
}

void GpuRunner::run_together(const std::vector<Text>& texts, const KvCache& cache,
                             const UseTextLogits& use) {
  std::vector<Piece> pieces;
  std::vector<Row> rows;
  int64_t before = 0;  // tokens of the texts in front
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto total = static_cast<int64_t>(texts[i].ids->size());
    pieces.push_back({texts[i].ids, 0, total, &texts[i].pages});
    for (int64_t token = texts[i].from; token < texts[i].to; ++token) {
      rows.push_back({i, token, static_cast<int32_t>(before + token)});
    }
    before += total;
  }
  const Pinned host = pinned_logits(static_cast<int64_t>(rows.size()));
  model_.decoder.forward(put_pieces(pieces), cache.layers(), {});
  give_logits(rows, host, nullptr, use);
}

Pinned GpuRunner::pinned_logits(int64_t rows) const {
  rows = std::max<int64_t>(1, std::min(model_.decoder.limits().logit_rows, rows));
  return Pinned(static_cast<size_t>(rows * model_.config.vocab_size) * sizeof(float));
}

// As many rows at a time as there is room for, and of those each text's together.
void GpuRunner::give_logits(const std::vector<Row>& rows, const Pinned& host,
                            LinearObserver* observer, const UseTextLogits& use) {
  const auto most = static_cast<size_t>(model_.decoder.limits().logit_rows);
  const int64_t vocab = model_.config.vocab_size;
  for (size_t first = 0; first < rows.size(); first += most) {
    const size_t end = std::min(first + most, rows.size());
    std::vector<int32_t> picked;
    for (size_t i = first; i < end; ++i) picked.push_back(rows[i].row);
    const auto count = static_cast<int64_t>(picked.size());
    const Tensor token_rows = slots_.inputs(1, 0, count).token_rows;
    cuda::copy(token_rows.raw(), picked.data(), picked.size() * sizeof(int32_t), stream_);
    const Tensor logits = slots_.logits(count);
    model_.decoder.logits(logits, token_rows, {observer, nullptr});
    cuda::copy(host.as<void>(), logits.raw(), logits.bytes(), stream_);
    finish("a forward pass");
    for (size_t i = first; i < end;) {
      size_t next = i;
      while (next < end && rows[next].text == rows[i].text) ++next;
      const float* const values = host.as<float>() + static_cast<int64_t>(i - first) * vocab;
      use(rows[i].text, rows[i].token,
          ConstTensor(values, DataType::kFp32, {static_cast<int64_t>(next - i), vocab}));
      i = next;
    }
  }
}

void GpuRunner::run_linear(const Linear& linear, float* y, const float* x, int64_t tokens) {
  const Shape shape{tokens, linear.weight().k};
  const DataType dtype = *model_.options.dtype;
  const Buffer rounded(dtype, shape, MemoryKind::kWorkspace);
  dispatch_float(dtype, [&](auto tag) {
    using T = decltype(tag);
    T* to = static_cast<T*>(rounded.data());
    for (int64_t i = 0; i < shape.count(); ++i) to[i] = from_float<T>(x[i]);
  });
  const Buffer input(dtype, shape, MemoryKind::kWorkspace, Device::kCuda);
  const Buffer output(DataType::kFp32, {tokens, linear.weight().n}, MemoryKind::kWorkspace,
                      Device::kCuda);
  cuda::copy(input.data(), rounded.data(), rounded.bytes(), stream_);
  model_.decoder.run_linear(linear, output.tensor(), input.tensor());
  cuda::copy(y, output.data(), output.bytes(), stream_);
  cuda::synchronize(stream_);
}

// Inputs of sequences that have nothing but their lengths: token 0, the first pages.
void GpuRunner::put_dummies(int64_t batch, int64_t context, int64_t tokens) {
  const int64_t max_pages = pages_for(model_.options.max_len);
  const int64_t used = pages_for(context + tokens);
  std::vector<int32_t> positions, offsets, last;
  std::vector<int32_t> pages(static_cast<size_t>(batch * max_pages), scratch_page());
  for (int64_t s = 0; s < batch; ++s) {
    offsets.push_back(static_cast<int32_t>(s * tokens));
    last.push_back(static_cast<int32_t>((s + 1) * tokens - 1));
    for (int64_t i = 0; i < tokens; ++i) positions.push_back(static_cast<int32_t>(context + i));
    for (int64_t i = 0; i < used; ++i) {
      pages[static_cast<size_t>(s * max_pages + i)] = static_cast<int32_t>(s * used + i);
    }
  }
  offsets.push_back(static_cast<int32_t>(batch * tokens));
  const StepInputs to = slots_.inputs(batch, batch * tokens, batch);
  const auto put = [&](Tensor tensor, const std::vector<int32_t>& values) {
    cuda::copy(tensor.raw(), values.data(), values.size() * sizeof(int32_t), stream_);
  };
  put(to.ids, std::vector<int32_t>(positions.size(), 0));
  put(to.positions, positions);
  put(to.context, std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(context)));
  put(to.offsets, offsets);
  put(to.pages, pages);
  put(to.token_rows, last);
  put(to.row_slots, std::vector<int32_t>(static_cast<size_t>(batch), -1));
  cuda::synchronize(stream_);
}

std::vector<StepNode> GpuRunner::profile(int64_t batch, int64_t context, int64_t tokens) {
  put_dummies(batch, context, tokens);
  const KvPages& layer = model_.cache.layers()[0];
  const int64_t columns = layer.k.dim(1) * layer.k.dim(3);
  const size_t kv_bytes = 2 * static_cast<size_t>(batch * (context + tokens) * columns) *
                          size_of(*model_.options.dtype);
  const int64_t decodes = tokens == 1 ? batch : 0;
  // Op by op, also where steps run as one kernel: that is one node, and has no parts to time apart.
  return profile_nodes(stream_, kv_bytes, [&](StepMarker* marker) {
    model_.decoder.forward(slots_.batch(batch, batch * tokens, decodes, tokens),
                           model_.cache.layers(), {nullptr, marker});
    const Tensor rows = slots_.inputs(batch, 0, batch).token_rows;
    model_.decoder.logits(slots_.logits(batch), rows, {nullptr, marker});
    slots_.sample(batch, stream_);
    if (marker != nullptr) marker->mark("sample", 0);
  });
}

}  // namespace

std::unique_ptr<StepRunner> make_gpu_runner(const RunnerModel& model) {
  return std::make_unique<GpuRunner>(model);
}

}  // namespace flexq_ft
