#include "ft/decoding/sampler.h"

#include <cmath>
#include <exception>

namespace flexq_ft {

namespace {

[[noreturn]] void fail_not_finite(const std::string& where) {
  throw Error(ErrorKind::kWeight, detail::join("the logits of ", where, " are not finite"),
              "the weights are damaged, or a value passed the range of the compute type",
              "--dtype fp32 or --dtype bf16, or flexq-ft inspect MODEL --verify");
}

// Calls f(row) for every row on all threads; the first exception is thrown again here.
template <typename F>
void for_each_row(int64_t rows, F&& f) {
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) if (rows > 1)
  for (int64_t row = 0; row < rows; ++row) {
    try {
      f(row);
    } catch (...) {
#pragma omp critical(flexq_ft_sampler)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

TokenScore score_row(const float* logits, int64_t vocab, int64_t target) {
  int64_t best = 0;
  for (int64_t i = 1; i < vocab; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  const float top = logits[best];
  double sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) sum += static_cast<double>(std::exp(logits[i] - top));
  return {static_cast<float>(static_cast<double>(logits[target] - top) - std::log(sum)), best};
}

}  // namespace

std::vector<Sampled> sample_rows(Tensor logits, const std::vector<SampleRow>& rows) {
  FLEXQ_FT_CHECK_EQ(logits.dim(0), static_cast<int64_t>(rows.size()), "rows to sample");
  const int64_t vocab = logits.dim(1);
  std::vector<Sampled> sampled(rows.size());
  for_each_row(logits.dim(0), [&](int64_t row) {
    const SampleRow& with = rows[static_cast<size_t>(row)];
    const Sampled token = sample_token(logits.data<float>() + row * vocab, vocab, *with.params,
                                       *with.end_ids, *with.history, with.generated);
    if (!std::isfinite(token.logprob)) fail_not_finite(detail::join("slot ", with.slot));
    sampled[static_cast<size_t>(row)] = token;
  });
  return sampled;
}

std::vector<TokenScore> score_rows(ConstTensor logits, const std::vector<int64_t>& targets) {
  FLEXQ_FT_CHECK_EQ(logits.dim(0), static_cast<int64_t>(targets.size()), "rows to score");
  const int64_t vocab = logits.dim(1);
  std::vector<TokenScore> scores(targets.size());
  for_each_row(logits.dim(0), [&](int64_t row) {
    const size_t i = static_cast<size_t>(row);
    scores[i] = score_row(logits.data<float>() + row * vocab, vocab, targets[i]);
    if (!std::isfinite(scores[i].logprob)) fail_not_finite(detail::join("row ", row));
  });
  return scores;
}

}  // namespace flexq_ft
