#include "ft/decoding/step_batch.h"

#include <algorithm>

namespace flexq_ft {

namespace {

ConstTensor int32_view(const std::vector<int32_t>& values) {
  return ConstTensor(values.data(), DataType::kInt32, {static_cast<int64_t>(values.size())});
}

}  // namespace

StepBatch::StepBatch(int64_t max_tokens, int64_t max_sequences, int64_t max_pages)
    : max_pages_(max_pages) {
  ids_.reserve(static_cast<size_t>(max_tokens));
  positions_.reserve(static_cast<size_t>(max_tokens));
  offsets_.reserve(static_cast<size_t>(max_sequences + 1));
  context_.reserve(static_cast<size_t>(max_sequences));
  pages_.reserve(static_cast<size_t>(max_sequences * max_pages));
  clear();
}

void StepBatch::clear() {
  for (std::vector<int32_t>* values : {&ids_, &positions_, &context_, &pages_, &rows_}) {
    values->clear();
  }
  offsets_.assign(1, 0);
}

void StepBatch::add(const std::vector<int64_t>& tokens, int64_t begin, int64_t count,
                    const std::vector<int32_t>& pages) {
  FLEXQ_FT_CHECK_LE(static_cast<int64_t>(pages.size()), max_pages_, "pages of a sequence");
  for (int64_t i = begin; i < begin + count; ++i) {
    ids_.push_back(static_cast<int32_t>(tokens[static_cast<size_t>(i)]));
    positions_.push_back(static_cast<int32_t>(i));
  }
  offsets_.push_back(static_cast<int32_t>(ids_.size()));
  context_.push_back(static_cast<int32_t>(begin));
  pages_.insert(pages_.end(), pages.begin(), pages.end());
  pages_.resize(context_.size() * static_cast<size_t>(max_pages_), -1);
}

RaggedBatch StepBatch::view() const {
  const int64_t sequences = static_cast<int64_t>(context_.size());
  RaggedBatch batch;
  batch.ids = int32_view(ids_);
  batch.positions = int32_view(positions_);
  batch.offsets = int32_view(offsets_);
  batch.context = int32_view(context_);
  batch.pages = ConstTensor(pages_.data(), DataType::kInt32, {sequences, max_pages_});
  const auto length = [&](int64_t s) {
    const auto i = static_cast<size_t>(s);
    return static_cast<int64_t>(offsets_[i + 1]) - offsets_[i];
  };
  while (batch.decodes < sequences && length(batch.decodes) == 1) ++batch.decodes;
  for (int64_t s = batch.decodes; s < sequences; ++s) {
    batch.longest = std::max(batch.longest, length(s));
  }
  return batch;
}

ConstTensor StepBatch::logit_rows() const { return int32_view(rows_); }

}  // namespace flexq_ft
