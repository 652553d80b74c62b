#include "ft/kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ft/core/check.h"

namespace flexq_ft {

namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// The last token of a word is banned where the history ends with the tokens before it.
void ban_words(float* logits, const std::vector<std::vector<int64_t>>& words,
               const std::vector<int64_t>& history) {
  for (const std::vector<int64_t>& word : words) {
    const auto prefix = static_cast<std::ptrdiff_t>(word.size()) - 1;
    if (prefix > static_cast<std::ptrdiff_t>(history.size())) continue;
    if (std::equal(word.begin(), word.end() - 1, history.end() - prefix)) {
      logits[word.back()] = kMasked;
    }
  }
}

void penalise(float* logits, int64_t vocab_size, const SamplingParams& params,
              const std::vector<int64_t>& history) {
  if (params.repetition_penalty == 1.0 && params.presence_penalty == 0.0) return;
  std::vector<bool> seen(static_cast<size_t>(vocab_size), false);
  for (int64_t id : history) {
    FLEXQ_FT_CHECK(id >= 0 && id < vocab_size, "history holds id ", id, " of ", vocab_size);
    if (seen[static_cast<size_t>(id)]) continue;
    seen[static_cast<size_t>(id)] = true;
    const double logit = logits[id];
    const double p = params.repetition_penalty;
    logits[id] =
        static_cast<float>((logit < 0.0 ? logit * p : logit / p) - params.presence_penalty);
  }
}

struct Candidates {
  std::vector<int64_t> ids;
  std::vector<double> weights;  // exp(logit - best logit), beside ids
};

// The k best ids, best first; ties to the lower id.
std::vector<int64_t> best_ids(const float* logits, int64_t vocab_size, int64_t k) {
  std::vector<int64_t> ids(static_cast<size_t>(vocab_size));
  std::iota(ids.begin(), ids.end(), int64_t{0});
  const auto better = [logits](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (k < vocab_size) {
    std::nth_element(ids.begin(), ids.begin() + k, ids.end(), better);
    ids.resize(static_cast<size_t>(k));
  }
  std::sort(ids.begin(), ids.end(), better);
  return ids;
}

double weight_of(const float* logits, int64_t id, float top) {
  return std::exp(static_cast<double>(logits[id]) - top);
}

// The smallest set of best ids, of at most k, with top_p of the mass of the k best.
std::vector<int64_t> nucleus(const float* logits, int64_t vocab_size, int64_t k, double top_p,
                             float top) {
  double mass = 0.0;
  std::vector<int64_t> ids;
  if (k < vocab_size) {
    ids = best_ids(logits, vocab_size, k);
    for (int64_t id : ids) mass += weight_of(logits, id, top);
  } else {
    for (int64_t i = 0; i < vocab_size; ++i) mass += weight_of(logits, i, top);
  }
  // Without a top-k, sort no more of the vocabulary than the nucleus needs.
  for (int64_t tried = std::min<int64_t>(k, 256);; tried = std::min(k, tried * 8)) {
    if (k == vocab_size) ids = best_ids(logits, vocab_size, tried);
    double sum = 0.0;
    for (size_t i = 0; i < ids.size(); ++i) {
      sum += weight_of(logits, ids[i], top);
      if (sum >= top_p * mass) {
        ids.resize(i + 1);
        return ids;
      }
    }
    if (tried >= k) return ids;  // rounding kept the sum below the mass
  }
}

Candidates candidates(const float* logits, int64_t vocab_size, const SamplingParams& params,
                      float top) {
  const int64_t k = params.top_k == 0 ? vocab_size : std::min(params.top_k, vocab_size);
  const double top_p = params.top_k > 0 && params.top_p == 0.0 ? 1.0 : params.top_p;
  Candidates kept;
  if (top_p < 1.0) {
    kept.ids = nucleus(logits, vocab_size, k, top_p, top);
  } else if (k < vocab_size) {
    kept.ids = best_ids(logits, vocab_size, k);
  } else {
    kept.ids.resize(static_cast<size_t>(vocab_size));
    std::iota(kept.ids.begin(), kept.ids.end(), int64_t{0});
  }
  std::sort(kept.ids.begin(), kept.ids.end());
  size_t count = 0;
  for (int64_t id : kept.ids) {
    const double weight = weight_of(logits, id, top);
    if (weight <= 0.0 || weight < params.min_p) continue;
    kept.ids[count++] = id;
    kept.weights.push_back(weight);
  }
  kept.ids.resize(count);
  return kept;
}

int64_t draw(const Candidates& kept, double uniform) {
  const double total = std::accumulate(kept.weights.begin(), kept.weights.end(), 0.0);
  double sum = 0.0;
  for (size_t i = 0; i < kept.ids.size(); ++i) {
    sum += kept.weights[i];
    if (sum > uniform * total) return kept.ids[i];
  }
  return kept.ids.back();  // uniform * total rounded up to the total
}

}  // namespace

double log_sum_exp(const float* logits, int64_t vocab_size) {
  float top = logits[0];
  for (int64_t i = 0; i < vocab_size; ++i) {
    if (!std::isfinite(logits[i])) {
      throw Error(ErrorKind::kWeight,
                  detail::join("the model's logits are not finite: token ", i, " of ", vocab_size,
                               " has ", logits[i]),
                  "a weight is damaged, or a value left the range of the compute type",
                  "flexq-ft inspect MODEL --verify, or run with --dtype fp32");
    }
    top = std::max(top, logits[i]);
  }
  double sum = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[i]) - top);
  return top + std::log(sum);
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;  // the golden ratio
    key[1] += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

double philox_uniform(uint64_t seed, uint64_t index) {
  const auto words =
      philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0u, 0u},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (static_cast<uint64_t>(words[1]) << 32) | words[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Sampled sample_token(float* logits, int64_t vocab_size, const SamplingParams& params,
                     const std::vector<int64_t>& end_ids, const std::vector<int64_t>& history,
                     int64_t generated) {
  FLEXQ_FT_CHECK_LT(0, vocab_size, "sampling: vocabulary");
  const double log_sum = log_sum_exp(logits, vocab_size);
  const std::vector<float> original(logits, logits + vocab_size);

  ban_words(logits, params.bad_words, history);
  if (params.temperature != 0.0 && params.temperature != 1.0) {
    for (int64_t i = 0; i < vocab_size; ++i) {
      logits[i] = static_cast<float>(logits[i] / params.temperature);
    }
  }
  penalise(logits, vocab_size, params, history);
  if (generated < params.min_tokens) {
    for (int64_t id : params.end_ids.empty() ? end_ids : params.end_ids) {
      FLEXQ_FT_CHECK(id >= 0 && id < vocab_size, "end id ", id, " of ", vocab_size);
      logits[id] = kMasked;
    }
  }

  const int64_t best = std::max_element(logits, logits + vocab_size) - logits;  // the first of ties
  if (logits[best] == kMasked) {
    throw Error(ErrorKind::kConfig,
                detail::join("bad_words and min_tokens = ", params.min_tokens,
                             " leave none of the ", vocab_size, " tokens"),
                {}, "ban fewer tokens");
  }
  if (std::isinf(logits[best])) {
    throw Error(ErrorKind::kConfig,
                detail::join("temperature = ", params.temperature,
                             " and repetition_penalty = ", params.repetition_penalty,
                             " make the logit of token ", best, " infinite"),
                {}, "use values nearer to 1");
  }
  const bool greedy =
      params.temperature == 0.0 || params.top_k == 1 || (params.top_k == 0 && params.top_p == 0.0);
  Sampled out;
  out.token = best;
  if (!greedy) {
    const Candidates kept = candidates(logits, vocab_size, params, logits[best]);
    out.token = draw(kept, philox_uniform(params.seed, static_cast<uint64_t>(generated)));
  }
  out.logprob = static_cast<float>(original[static_cast<size_t>(out.token)] - log_sum);
  return out;
}

}  // namespace flexq_ft
