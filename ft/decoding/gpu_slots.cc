#include "ft/decoding/gpu_slots.h"

#include "ft/core/cuda.h"

namespace flexq_ft {

namespace {

Buffer ints(Shape shape) {
  return Buffer(DataType::kInt32, shape, MemoryKind::kActivations, Device::kCuda);
}

Buffer bytes(int64_t rows, size_t row_bytes) {
  return Buffer(DataType::kUint8, Shape{rows, static_cast<int64_t>(row_bytes)},
                MemoryKind::kActivations, Device::kCuda);
}

// A vector of the beginning of a buffer of integers.
Tensor head(const Buffer& buffer, int64_t count) {
  return buffer.tensor(DataType::kInt32, {count});
}

// Row `row` of a matrix <- values, from its beginning on.
template <typename T>
void put(const Buffer& matrix, int64_t row, const std::vector<T>& values, Stream stream) {
  const Tensor to = matrix.tensor().rows(row, row + 1);
  FLEXQ_FT_CHECK_LE(values.size() * sizeof(T), to.bytes(), "row of a slot");
  cuda::copy(to.raw(), values.data(), values.size() * sizeof(T), stream);
}

}  // namespace

size_t GpuSlotSizes::bytes() const {
  const int64_t max_pages = pages_for(max_len);
  const int64_t per_slot = max_len + 2 + kWordInts + 2 * max_pages + 2 + kStepInputInts;
  const int64_t integers = slots * per_slot + 2 * tokens + 2 * logit_rows + 1;
  return static_cast<size_t>(integers) * sizeof(int32_t) +
         static_cast<size_t>(slots) * sizeof(SlotParams) +
         static_cast<size_t>(logit_rows * vocab) * sizeof(float) +
         static_cast<size_t>(logit_rows) * sizeof(DeviceSample) +
         sample_workspace_bytes(logit_rows, vocab);
}

GpuSlots::GpuSlots(const GpuSlotSizes& sizes, Stream stream)
    : sizes_(sizes),
      max_pages_(pages_for(sizes.max_len)),
      params_(bytes(sizes.slots, sizeof(SlotParams))),
      history_(ints({sizes.slots, sizes.max_len})),
      tokens_(ints({sizes.slots})),
      finished_(ints({sizes.slots})),
      words_(ints({sizes.slots, kWordInts})),
      slot_pages_(ints({sizes.slots, max_pages_})),
      ids_(ints({sizes.tokens})),
      positions_(ints({sizes.tokens})),
      offsets_(ints({sizes.slots + 1})),
      context_(ints({sizes.slots})),
      pages_(ints({sizes.slots, max_pages_})),
      token_rows_(ints({sizes.logit_rows})),
      row_slots_(ints({sizes.logit_rows})),
      items_(ints({sizes.slots, kStepInputInts})),
      logits_(DataType::kFp32, {sizes.logit_rows, sizes.vocab}, MemoryKind::kActivations,
              Device::kCuda),
      samples_(bytes(sizes.logit_rows, sizeof(DeviceSample))),
      sample_workspace_(sample_workspace_bytes(sizes.logit_rows, sizes.vocab),
                        MemoryKind::kActivations, Device::kCuda) {
  // Idle rows read what no sequence has written yet.
  for (const Buffer* buffer :
       {&params_, &history_, &tokens_, &words_, &slot_pages_, &pages_, &sample_workspace_}) {
    cuda::fill(buffer->data(), 0, buffer->bytes(), stream);
  }
  cuda::fill(finished_.data(), 1, finished_.bytes(), stream);
}

void GpuSlots::admit(int64_t slot, const Sequence& sequence, Stream stream) {
  std::vector<int32_t> words;
  const std::vector<uint8_t> params =
      encode_slot(sequence.params, sequence.end_ids, sequence.state.prompt, sizes_.max_len, &words);
  put(params_, slot, params, stream);
  put(words_, slot, words, stream);
  put(history_, slot, std::vector<int32_t>(sequence.tokens.begin(), sequence.tokens.end()), stream);
  put(slot_pages_, slot, sequence.pages, stream);
  put(tokens_, slot, std::vector<int32_t>{static_cast<int32_t>(sequence.tokens.size())}, stream);
  put(finished_, slot, std::vector<int32_t>{0}, stream);
  cuda::synchronize(stream);  // the vectors end here
}

StepInputs GpuSlots::inputs(int64_t sequences, int64_t tokens, int64_t rows) const {
  return {
      head(ids_, tokens),        head(positions_, tokens),           head(offsets_, sequences + 1),
      head(context_, sequences), pages_.tensor().rows(0, sequences), head(token_rows_, rows),
      head(row_slots_, rows)};
}

RaggedBatch GpuSlots::batch(int64_t sequences, int64_t tokens, int64_t decodes,
                            int64_t longest) const {
  const StepInputs views = inputs(sequences, tokens, 0);
  return {views.ids, views.positions, views.offsets, views.context, views.pages, decodes, longest};
}

Tensor GpuSlots::items(int64_t sequences) const { return items_.tensor().rows(0, sequences); }

SlotTensors GpuSlots::slots() const {
  return {history_.tensor(), tokens_.tensor(), finished_.tensor(), slot_pages_.tensor()};
}

Tensor GpuSlots::logits(int64_t rows) const { return logits_.tensor().rows(0, rows); }

Tensor GpuSlots::samples(int64_t rows) const { return samples_.tensor().rows(0, rows); }

DeviceSlots GpuSlots::sampling() const {
  return {params_.tensor(), history_.tensor(), tokens_.tensor(), finished_.tensor(),
          words_.tensor()};
}

void GpuSlots::sample(int64_t rows, Stream stream) const {
  invokeSample(samples(rows), logits(rows), head(row_slots_, rows), sampling(),
               sample_workspace_.tensor(), stream);
}

}  // namespace flexq_ft
