// Given tokens through the model: forward, score, and the replay of linears.
#include <algorithm>
#include <cstring>
#include <map>

#include "ft/decoding/engine_impl.h"
#include "ft/decoding/sampler.h"

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

void Engine::Impl::run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to,
                             LinearObserver* observer, const StepRunner::UseLogits& use) {
  const int64_t total = static_cast<int64_t>(ids.size());
  // A GPU's memory was planned without another cache: the pool's pages, if enough are free.
  if (gpu && pages_for(total) <= pages.available()) {
    const std::vector<int32_t> taken = pages.take(total);
    try {
      runner->run_alone(ids, from, to, cache, taken, observer, use);
    } catch (...) {
      pages.give_back(taken);
      throw;
    }
    return pages.give_back(taken);
  }
  PagePool own_pages(pages_for(total));
  const KvCache own_cache = make_cache(own_pages.size());
  runner->run_alone(ids, from, to, own_cache, own_pages.take(total), observer, use);
}

// At least one: a text that is too long for a step, or for the free pages, runs alone.
size_t Engine::Impl::fitting_together(const std::vector<ScoredText>& texts, size_t begin) const {
  int64_t tokens = 0, taken = 0;
  size_t end = begin;
  while (end < texts.size() && static_cast<int64_t>(end - begin) < options.max_batch) {
    const int64_t total = static_cast<int64_t>(texts[end].ids.size());
    tokens += total;
    taken += pages_for(total);
    if (tokens > options.prefill_tokens || (gpu && taken > pages.available())) break;
    ++end;
  }
  return std::max<size_t>(end - begin, 1);
}

std::vector<float> Engine::forward(const std::vector<int64_t>& ids) {
  const Impl::Call call(*impl_);
  impl_->check_ids(ids, 0);
  const int64_t vocab = impl_->folder.config.vocab_size;
  std::vector<float> all(ids.size() * static_cast<size_t>(vocab));
  impl_->run_alone(ids, 0, static_cast<int64_t>(ids.size()), nullptr,
                   [&](int64_t first, ConstTensor logits) {
                     std::memcpy(all.data() + first * vocab, logits.raw(), logits.bytes());
                   });
  return all;
}

void Engine::Impl::run_together(std::vector<StepRunner::Text> texts,
                                const StepRunner::UseTextLogits& use) {
  const auto take_from = [&](PagePool& pool) {
    for (StepRunner::Text& text : texts) {
      text.pages = pool.take(static_cast<int64_t>(text.ids->size()));
    }
  };
  if (!gpu) {
    int64_t count = 0;
    for (const StepRunner::Text& text : texts) {
      count += pages_for(static_cast<int64_t>(text.ids->size()));
    }
    PagePool own_pages(count);
    const KvCache own_cache = make_cache(own_pages.size());
    take_from(own_pages);
    return runner->run_together(texts, own_cache, use);
  }
  const auto give_back = [&] {
    for (const StepRunner::Text& text : texts) pages.give_back(text.pages);
  };
  try {
    take_from(pages);
    runner->run_together(texts, cache, use);
  } catch (...) {
    give_back();
    throw;
  }
  give_back();
}

Engine::Score Engine::score(const std::vector<int64_t>& ids, int64_t first) {
  return std::move(score({ScoredText{ids, first}}).front());
}

std::vector<Engine::Score> Engine::score(const std::vector<ScoredText>& texts) {
  const Impl::Call call(*impl_);
  std::vector<Score> scores(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    impl_->check_ids(texts[i].ids, 0);
    const int64_t total = static_cast<int64_t>(texts[i].ids.size());
    if (const int64_t first = texts[i].first; first < 1 || first > total) {
      throw Error(ErrorKind::kConfig,
                  detail::join("tokens from ", first, " on cannot be scored of ", total),
                  "the first token has nothing before it that could predict it",
                  detail::join("first from 1 to ", total));
    }
    scores[i].logprobs.reserve(static_cast<size_t>(total - texts[i].first));
    scores[i].argmax.reserve(static_cast<size_t>(total - texts[i].first));
  }
  const auto keep = [&](size_t text, int64_t row, ConstTensor logits) {
    const auto begin = texts[text].ids.begin() + row + 1;
    for (const TokenScore& token : score_rows(logits, {begin, begin + logits.dim(0)}, row)) {
      scores[text].logprobs.push_back(token.logprob);
      scores[text].argmax.push_back(token.argmax);
    }
  };
  for (size_t begin = 0; begin < texts.size();) {
    const size_t count = impl_->fitting_together(texts, begin);
    std::vector<StepRunner::Text> together;
    for (size_t i = begin; i < begin + count; ++i) {
      const int64_t total = static_cast<int64_t>(texts[i].ids.size());
      together.push_back({&texts[i].ids, texts[i].first - 1, total - 1, {}});
    }
    if (count == 1) {
      const StepRunner::Text& text = together.front();
      impl_->run_alone(*text.ids, text.from, text.to, nullptr,
                       [&](int64_t row, ConstTensor logits) { keep(begin, row, logits); });
    } else {
      impl_->run_together(std::move(together), [&](size_t text, int64_t row, ConstTensor logits) {
        keep(begin + text, row, logits);
      });
    }
    begin += count;
  }
  return scores;
}

std::vector<LinearTrace> Engine::trace(const std::vector<int64_t>& ids) {
  const Impl::Call call(*impl_);
  impl_->check_ids(ids, 0);
  Recorder recorder;
  impl_->run_alone(ids, 0, static_cast<int64_t>(ids.size()), &recorder,
                   [](int64_t, ConstTensor) {});
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
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t count = std::min(chunk, tokens - begin);
    impl_->runner->run_linear(*linear, y.data() + begin * n, x.data() + begin * k, count);
  }
  return y;
}

}  // namespace flexq_ft
