#include "ft/decoding/gpu_forward.h"

#include <algorithm>

#include "ft/core/cuda.h"

namespace flexq_ft {

// Always as prefill: a token's bits must not depend on how the chunks were cut.
RaggedBatch GpuForward::put_pieces(const std::vector<Piece>& pieces) {
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
  finish_("the inputs of a chunk");
  return slots_.batch(sequences, tokens, 0, longest);
}

void GpuForward::run_alone(const std::vector<int64_t>& ids, int64_t from, int64_t to,
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

void GpuForward::run_together(const std::vector<Text>& texts, const KvCache& cache,
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

Pinned GpuForward::pinned_logits(int64_t rows) const {
  rows = std::max<int64_t>(1, std::min(model_.decoder.limits().logit_rows, rows));
  return Pinned(static_cast<size_t>(rows * model_.config.vocab_size) * sizeof(float));
}

// As many rows at a time as there is room for, and of those each text's together.
void GpuForward::give_logits(const std::vector<Row>& rows, const Pinned& host,
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
    finish_("a forward pass");
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

void GpuForward::run_linear(const Linear& linear, float* y, const float* x, int64_t tokens) {
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
  linear.weight().rows.restore(y, tokens, linear.weight().n);
}

// Inputs of sequences that have nothing but their lengths: token 0, the first pages.
void GpuForward::put_dummies(int64_t batch, int64_t context, int64_t tokens) {
  const int64_t max_pages = pages_for(model_.options.max_len);
  const int64_t used = pages_for(context + tokens);
  std::vector<int32_t> positions, offsets, last;
  std::vector<int32_t> pages(static_cast<size_t>(batch * max_pages), model_.cache.last_page());
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

std::vector<StepNode> GpuForward::profile(int64_t batch, int64_t context, int64_t tokens) {
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

}  // namespace flexq_ft
