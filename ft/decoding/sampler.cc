#include "ft/decoding/sampler.h"

#include <algorithm>
#include <exception>

namespace flexq_ft {

namespace {

// Calls f(row) for every row on all threads. If some throw, the first row's Error is thrown on, so
// that all ranks report the same one, with name(row) before its text.
template <typename Name, typename F>
void for_each_row(int64_t rows, Name&& name, F&& f) {
  std::exception_ptr failure;
  int64_t failed = rows;
#pragma omp parallel for schedule(dynamic) if (rows > 1)
  for (int64_t row = 0; row < rows; ++row) {
    try {
      f(row);
    } catch (...) {
#pragma omp critical(flexq_ft_sampler)
      if (row < failed) {
        failed = row;
        failure = std::current_exception();
      }
    }
  }
  if (!failure) return;
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    throw Error(error.kind(), detail::join(name(failed), ": ", error.what()), error.cause(),
                error.hint());
  }
}

}  // namespace

std::vector<Sampled> sample_rows(Tensor logits, const std::vector<SampleRow>& rows) {
  FLEXQ_FT_CHECK_EQ(logits.dim(0), static_cast<int64_t>(rows.size()), "rows to sample");
  const int64_t vocab = logits.dim(1);
  std::vector<Sampled> sampled(rows.size());
  const auto name = [&](int64_t row) {
    return detail::join("slot ", rows[static_cast<size_t>(row)].slot);
  };
  for_each_row(logits.dim(0), name, [&](int64_t row) {
    const SampleRow& with = rows[static_cast<size_t>(row)];
    sampled[static_cast<size_t>(row)] =
        sample_token(logits.data<float>() + row * vocab, vocab, *with.params, *with.end_ids,
                     *with.history, with.generated);
  });
  return sampled;
}

std::vector<TokenScore> score_rows(ConstTensor logits, const std::vector<int64_t>& targets,
                                   int64_t first) {
  FLEXQ_FT_CHECK_EQ(logits.dim(0), static_cast<int64_t>(targets.size()), "rows to score");
  const int64_t vocab = logits.dim(1);
  std::vector<TokenScore> scores(targets.size());
  const auto name = [&](int64_t row) { return detail::join("position ", first + row); };
  for_each_row(logits.dim(0), name, [&](int64_t row) {
    const float* of_row = logits.data<float>() + row * vocab;
    const double log_sum = log_sum_exp(of_row, vocab);
    const size_t i = static_cast<size_t>(row);
    scores[i] = {static_cast<float>(of_row[targets[i]] - log_sum),
                 std::max_element(of_row, of_row + vocab) - of_row};
  });
  return scores;
}

}  // namespace flexq_ft
