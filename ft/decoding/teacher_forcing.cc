// Given tokens through the model: forward, score, and the replay of linears.
#include <algorithm>
#include <cstring>
#include <map>

#include "ft/decoding/engine_impl.h"

namespace flexq_ft {

namespace {

std::vector<float> to_floats(ConstTensor x) {
  std::vector<float> out(static_cast<size_t>(x.count()));
  dispatch_float(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const T* values = x.data<T>();
    for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(values[i]);
  });
  return out;
}

void round_into(Tensor out, const float* values) {
  dispatch_float(out.dtype(), [&](auto tag) {
    using T = decltype(tag);
    T* to = out.data<T>();
    for (int64_t i = 0; i < out.count(); ++i) to[i] = from_float<T>(values[i]);
  });
}

// Collects what linears saw; the chunks of a long sequence are joined.
class Recorder : public LinearObserver {
 public:
  void saw(const std::string& name, ConstTensor x, ConstTensor y) override {
    const auto [place, fresh] = index_.emplace(name, traces_.size());
    if (fresh) traces_.push_back({name, {}, {}, 0, x.dim(1), y.dim(1)});
    LinearTrace& trace = traces_[place->second];
    const std::vector<float> x_values = to_floats(x);
    const std::vector<float> y_values = to_floats(y);
    trace.x.insert(trace.x.end(), x_values.begin(), x_values.end());
    trace.y.insert(trace.y.end(), y_values.begin(), y_values.end());
    trace.tokens += x.dim(0);
  }

  std::vector<LinearTrace> take() { return std::move(traces_); }

 private:
  std::map<std::string, size_t> index_;
  std::vector<LinearTrace> traces_;
};

}  // namespace

void Engine::Impl::run_alone(const std::vector<int64_t>& ids, int64_t wanted,
                             LinearObserver* observer, const UseLogits& use) {
  const int64_t total = static_cast<int64_t>(ids.size());
  PagePool own_pages(pages_for(total));
  const KvCache own_cache = make_cache(own_pages.size());
  const std::vector<int32_t> sequence_pages = own_pages.take(total);
  for (int64_t begin = 0; begin < total; begin += options.prefill_tokens) {
    const int64_t count = std::min(options.prefill_tokens, total - begin);
    batch.clear();
    batch.add(ids, begin, count, sequence_pages);
    decoder.forward(batch.view(), own_cache.layers(), observer);
    const int64_t end = std::min(begin + count, wanted);
    for (int64_t first = begin; first < end; first += decoder.limits().logit_rows) {
      const int64_t rows = std::min(decoder.limits().logit_rows, end - first);
      std::vector<int32_t> picked(static_cast<size_t>(rows));
      for (int64_t i = 0; i < rows; ++i) {
        picked[static_cast<size_t>(i)] = static_cast<int32_t>(first - begin + i);
      }
      const Tensor out = logits.tensor(DataType::kFp32, {rows, folder.config.vocab_size});
      decoder.logits(out, ConstTensor(picked.data(), DataType::kInt32, {rows}), observer);
      use(first, out);
    }
  }
}

std::vector<float> Engine::forward(const std::vector<int64_t>& ids) {
  const Impl::Call call(*impl_);
  impl_->check_ids(ids, 0);
  const int64_t vocab = impl_->folder.config.vocab_size;
  std::vector<float> all(ids.size() * static_cast<size_t>(vocab));
  impl_->run_alone(ids, static_cast<int64_t>(ids.size()), nullptr,
                   [&](int64_t first, ConstTensor logits) {
                     std::memcpy(all.data() + first * vocab, logits.raw(), logits.bytes());
                   });
  return all;
}

Engine::Score Engine::score(const std::vector<int64_t>& ids) {
  const Impl::Call call(*impl_);
  impl_->check_ids(ids, 0);
  Score score;
  score.logprobs.reserve(ids.size() - 1);
  score.argmax.reserve(ids.size() - 1);
  impl_->run_alone(
      ids, static_cast<int64_t>(ids.size()) - 1, nullptr, [&](int64_t first, ConstTensor logits) {
        const auto begin = ids.begin() + first + 1;
        for (const TokenScore& token : score_rows(logits, {begin, begin + logits.dim(0)}, first)) {
          score.logprobs.push_back(token.logprob);
          score.argmax.push_back(token.argmax);
        }
      });
  return score;
}

std::vector<LinearTrace> Engine::trace(const std::vector<int64_t>& ids) {
  const Impl::Call call(*impl_);
  impl_->check_ids(ids, 0);
  Recorder recorder;
  impl_->run_alone(ids, static_cast<int64_t>(ids.size()), &recorder, [](int64_t, ConstTensor) {});
  return recorder.take();
}

std::vector<float> Engine::run_linear(const std::string& name, const std::vector<float>& x,
                                      int64_t tokens) {
  const Impl::Call call(*impl_);
  const Linear* linear = impl_->decoder.find_linear(name);
  if (linear == nullptr) {
    throw Error(ErrorKind::kConfig, detail::join("the model has no linear \"", name, "\""), {},
                "names are layers.0.qkv, layers.0.o, layers.0.gate_up, layers.0.down (or fc1, "
                "fc2), …, and lm_head");
  }
  const int64_t k = linear->weight().k;
  const int64_t n = linear->weight().n;
  if (tokens < 1 || static_cast<int64_t>(x.size()) != tokens * k) {
    throw Error(ErrorKind::kConfig,
                detail::join(name, " takes [tokens, ", k, "], and ", x.size(), " values for ",
                             tokens, " tokens were given"),
                {}, detail::join("give ", k, " values per token"));
  }
  std::vector<float> y(static_cast<size_t>(tokens * n));
  const int64_t chunk = std::min(tokens, impl_->decoder.limits().tokens);
  const Buffer rounded(*impl_->options.dtype, Shape{chunk, k}, MemoryKind::kActivations);
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t count = std::min(chunk, tokens - begin);
    const Tensor input = rounded.tensor(*impl_->options.dtype, {count, k});
    round_into(input, x.data() + begin * k);
    impl_->decoder.run_linear(*linear, Tensor(y.data() + begin * n, DataType::kFp32, {count, n}),
                              input);
  }
  return y;
}

}  // namespace flexq_ft
