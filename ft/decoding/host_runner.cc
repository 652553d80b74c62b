// StepRunner on the CPU: a step is computed when it is submitted.
#include <algorithm>
#include <chrono>

#include "ft/decoding/sampler.h"
#include "ft/decoding/step_batch.h"
#include "ft/decoding/step_runner.h"

namespace flexq_ft {

namespace {

using Clock = std::chrono::steady_clock;

void round_into(Tensor out, const float* values) {
  dispatch_float(out.dtype(), [&](auto tag) {
    using T = decltype(tag);
    T* to = out.data<T>();
    for (int64_t i = 0; i < out.count(); ++i) to[i] = from_float<T>(values[i]);
  });
}

class HostRunner final : public StepRunner {
 public:
  explicit HostRunner(const RunnerModel& model)
      : model_(model),
        batch_(model.decoder.limits().tokens, model.options.max_batch,
               pages_for(model.options.max_len)),
        logits_(DataType::kFp32, Shape{model.decoder.limits().logit_rows, model.config.vocab_size},
                MemoryKind::kActivations) {}

  int64_t depth() const override { return 1; }

  void admitted(int64_t, const Sequence&) override {}

  void submit(const std::vector<StepItem>& plan, const std::vector<Sequence>& sequences) override {
    const Clock::time_point start = Clock::now();
    sampled_ = compute(plan, sequences);
    times_.add(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }

  std::vector<StepSample> collect() override {
    std::vector<StepSample> out;
    for (const Sampled& sampled : sampled_) out.push_back({sampled, false, nullptr});
    return out;
  }

  std::vector<double> take_step_times() override { return times_.take(); }

  void run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to, const KvCache& cache,
                 const std::vector<int32_t>& pages, LinearObserver* observer,
                 const UseLogits& use) override {
    const int64_t total = static_cast<int64_t>(ids.size());
    for (int64_t begin = 0; begin < total; begin += model_.options.prefill_tokens) {
      const int64_t count = std::min(model_.options.prefill_tokens, total - begin);
      batch_.clear();
      batch_.add(ids, begin, count, pages);
      model_.decoder.forward(batch_.view(), cache.layers(), {observer, nullptr});
      give_logits(std::max(begin, from), std::min(begin + count, to), begin, observer, use);
    }
  }

  void run_together(const std::vector<Text>& texts, const KvCache& cache,
                    const UseTextLogits& use) override {
    batch_.clear();
    for (const Text& text : texts) {
      batch_.add(*text.ids, 0, static_cast<int64_t>(text.ids->size()), text.pages);
    }
    model_.decoder.forward(batch_.view(), cache.layers(), {});
    int64_t before = 0;  // tokens of the texts in front
    for (size_t i = 0; i < texts.size(); ++i) {
      give_logits(texts[i].from, texts[i].to, -before, nullptr,
                  [&](int64_t first, ConstTensor rows) { use(i, first, rows); });
      before += static_cast<int64_t>(texts[i].ids->size());
    }
  }

  void run_linear(const Linear& linear, float* y, const float* x, int64_t tokens) override {
    const Shape shape{tokens, linear.weight().k};
    const Buffer rounded(*model_.options.dtype, shape, MemoryKind::kActivations);
    round_into(rounded.tensor(), x);
    model_.decoder.run_linear(linear, Tensor(y, DataType::kFp32, {tokens, linear.weight().n}),
                              rounded.tensor());
  }

  std::vector<StepNode> profile(int64_t, int64_t, int64_t) override {
    throw Error(ErrorKind::kConfig, "the node times of a step are measured on a GPU only", {},
                "use --device cuda");
  }

 private:
  // Of a sequence's tokens [from, to), some at a time. Its token 0 would be row -origin of the
  // step.
  void give_logits(int64_t from, int64_t to, int64_t origin, LinearObserver* observer,
                   const UseLogits& use) {
    const int64_t most_rows = model_.decoder.limits().logit_rows;
    for (int64_t first = from; first < to; first += most_rows) {
      const int64_t rows = std::min(most_rows, to - first);
      std::vector<int32_t> picked(static_cast<size_t>(rows));
      for (int64_t i = 0; i < rows; ++i) {
        picked[static_cast<size_t>(i)] = static_cast<int32_t>(first - origin + i);
      }
      const Tensor out = logits(rows);
      model_.decoder.logits(out, ConstTensor(picked.data(), DataType::kInt32, {rows}),
                            {observer, nullptr});
      use(first, out);
    }
  }

  Tensor logits(int64_t rows) const {
    return logits_.tensor(DataType::kFp32, {rows, model_.config.vocab_size});
  }

  std::vector<Sampled> compute(const std::vector<StepItem>& plan,
                               const std::vector<Sequence>& sequences) {
    batch_.clear();
    std::vector<SampleRow> rows;
    for (const StepItem& item : plan) {
      const Sequence& sequence = sequences[static_cast<size_t>(item.slot)];
      batch_.add(sequence.tokens, item.begin, item.count, sequence.pages);
      if (!item.last) continue;
      batch_.want_logits(batch_.tokens() - 1);
      rows.push_back({item.slot, &sequence.params, &sequence.end_ids, &sequence.tokens,
                      sequence.state.tokens - sequence.state.prompt});
    }
    model_.decoder.forward(batch_.view(), model_.cache.layers(), {});
    if (rows.empty()) return {};
    const Tensor out = logits(static_cast<int64_t>(rows.size()));
    model_.decoder.logits(out, batch_.logit_rows(), {});
    std::vector<Sampled> sampled = sample_rows(out, rows);
    // Every rank has the same logits and draws the same, but for the last bit of exp on unlike
    // hosts; rank 0's tokens are everybody's.
    model_.comm.broadcast(sampled.data(), sampled.size() * sizeof(Sampled), 0);
    return sampled;
  }

  RunnerModel model_;
  StepBatch batch_;
  Buffer logits_;  // [logit rows, vocab] fp32
  std::vector<Sampled> sampled_;
  StepTimes times_;
};

}  // namespace

std::unique_ptr<StepRunner> make_host_runner(const RunnerModel& model) {
  return std::make_unique<HostRunner>(model);
}

}  // namespace flexq_ft
