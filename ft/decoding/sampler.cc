#include "ft/decoding/sampler.h"

#include <cmath>
#include <exception>

namespace flexq_ft {

namespace {

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
    try {
      sampled[static_cast<size_t>(row)] =
          sample_token(logits.data<float>() + row * vocab, vocab, *with.params, *with.end_ids,
                       *with.history, with.generated);
    } catch (const Error& error) {
      throw Error(error.kind(), detail::join("slot ", with.slot, ": ", error.what()), error.cause(),
                  error.hint());
    }
  });
  return sampled;
}

std::vector<TokenScore> score_rows(ConstTensor logits, const std::vector<int64_t>& targets,
                                   int64_t first) {
  FLEXQ_FT_CHECK_EQ(logits.dim(0), static_cast<int64_t>(targets.size()), "rows to score");
  const int64_t vocab = logits.dim(1);
  std::vector<TokenScore> scores(targets.size());
  for_each_row(logits.dim(0), [&](int64_t row) {
    const size_t i = static_cast<size_t>(row);
    scores[i] = score_row(logits.data<float>() + row * vocab, vocab, targets[i]);
    if (!std::isfinite(scores[i].logprob)) {
      throw Error(ErrorKind::kWeight,
                  detail::join("the logits of token ", first + row, " are not finite"),
                  "a weight is damaged, or a value left the range of the compute type",
                  "verify the model folder's hashes, or run with --dtype fp32");
    }
  });
  return scores;
}

}  // namespace flexq_ft
