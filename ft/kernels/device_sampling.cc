#include "ft/kernels/device_sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace flexq_ft {

static_assert(std::is_trivially_copyable_v<SlotParams>, "copied to a device as bytes");

namespace {

using Words = std::vector<std::vector<int64_t>>;

int32_t to_int32(int64_t value) {
  return static_cast<int32_t>(std::min<int64_t>(value, std::numeric_limits<int32_t>::max()));
}

// The table of one list of words and their tokens; an empty word matches nothing.
int32_t append_words(const Words& list, int64_t tokens_at, std::vector<int32_t>* table,
                     std::vector<int32_t>* tokens) {
  int32_t count = 0;
  for (const std::vector<int64_t>& word : list) {
    if (word.empty()) continue;
    table->push_back(to_int32(tokens_at + static_cast<int64_t>(tokens->size())));
    for (int64_t id : word) tokens->push_back(to_int32(id));
    table->push_back(to_int32(tokens_at + static_cast<int64_t>(tokens->size())));
    ++count;
  }
  return count;
}

int64_t filled_words(const Words& list) {
  return std::count_if(list.begin(), list.end(), [](const auto& word) { return !word.empty(); });
}

void encode_words(const SamplingParams& params, SlotParams* slot, std::vector<int32_t>* words) {
  const int64_t count = filled_words(params.stop_words) + filled_words(params.bad_words);
  std::vector<int32_t> tokens;
  words->clear();
  slot->stop_words = append_words(params.stop_words, 2 * count, words, &tokens);
  slot->bad_words = append_words(params.bad_words, 2 * count, words, &tokens);
  words->insert(words->end(), tokens.begin(), tokens.end());
  if (static_cast<int64_t>(words->size()) <= kWordInts) return;
  throw Error(
      ErrorKind::kConfig,
      detail::join("stop_words and bad_words are ", count, " words of ", tokens.size(),
                   " tokens together, ", words->size(), " entries; a GPU takes ", kWordInts),
      "each word takes two entries, and one for each token", "use fewer or shorter words");
}

void encode_end_ids(const SamplingParams& params, const std::vector<int64_t>& end_ids,
                    SlotParams* slot) {
  std::vector<int64_t> all = end_ids;
  slot->stop_ids = to_int32(static_cast<int64_t>(end_ids.size()));
  slot->mask_ids = slot->stop_ids;
  if (!params.end_ids.empty() && params.end_ids != end_ids) {
    slot->mask_begin = slot->stop_ids;
    slot->mask_ids = to_int32(static_cast<int64_t>(params.end_ids.size()));
    all.insert(all.end(), params.end_ids.begin(), params.end_ids.end());
  }
  if (all.size() > static_cast<size_t>(kSlotEndIds)) {
    throw Error(ErrorKind::kConfig,
                detail::join("end_ids are ", all.size(), " ids; a GPU takes ", kSlotEndIds), {},
                "use fewer end_ids");
  }
  std::transform(all.begin(), all.end(), slot->end_ids, to_int32);
}

int32_t flags_of(const SlotParams& slot) {
  const bool greedy =
      slot.temperature == 0.0 || slot.top_k == 1 || (slot.top_k == 0 && slot.top_p == 0.0);
  const bool divides = slot.temperature != 0.0 && slot.temperature != 1.0;
  const bool penalises = slot.repetition_penalty != 1.0 || slot.presence_penalty != 0.0;
  return (greedy ? kSlotGreedy : 0) | (divides ? kSlotDivides : 0) |
         (penalises ? kSlotPenalises : 0) | (slot.bad_words > 0 ? kSlotBans : 0);
}

Words decode_words(const int32_t* words, int32_t begin, int32_t count) {
  Words list;
  for (int32_t w = begin; w < begin + count; ++w) {
    list.emplace_back(words + words[2 * w], words + words[2 * w + 1]);
  }
  return list;
}

// One slot on the CPU, decoded.
struct HostSlot {
  SlotParams raw;
  SamplingParams params;
  std::vector<int64_t> history;
  int32_t* tokens;
  int32_t* finished;
  int32_t* row;  // of history
  int64_t capacity;

  HostSlot(const DeviceSlots& slots, int32_t slot)
      : tokens(slots.tokens.data<int32_t>() + slot),
        finished(slots.finished.data<int32_t>() + slot),
        row(slots.history.data<int32_t>() + slot * slots.history.dim(1)),
        capacity(slots.history.dim(1)) {
    std::memcpy(&raw, slots.params.data<uint8_t>() + slot * slots.params.dim(1), sizeof(raw));
    const int32_t* words = slots.words.data<int32_t>() + slot * slots.words.dim(1);
    params.temperature = raw.temperature;
    params.top_k = raw.top_k;
    params.top_p = raw.top_p;
    params.min_p = raw.min_p;
    params.repetition_penalty = raw.repetition_penalty;
    params.presence_penalty = raw.presence_penalty;
    params.min_tokens = raw.min_tokens;
    params.max_tokens = raw.max_tokens;
    params.seed = raw.seed;
    params.stop_words = decode_words(words, 0, raw.stop_words);
    params.bad_words = decode_words(words, raw.stop_words, raw.bad_words);
    history.assign(row, row + *tokens);
  }

  std::vector<int64_t> ids(int32_t begin, int32_t count) const {
    return {raw.end_ids + begin, raw.end_ids + begin + count};
  }

  // finish_reason of ft/decoding/stop.h, which kernels may not include.
  bool ends_with(int64_t token) const {
    const std::vector<int64_t> stop = ids(0, raw.stop_ids);
    if (std::find(stop.begin(), stop.end(), token) != stop.end()) return true;
    for (const std::vector<int64_t>& word : params.stop_words) {
      if (word.size() <= history.size() &&
          std::equal(word.rbegin(), word.rend(), history.rbegin())) {
        return true;
      }
    }
    const int64_t length = static_cast<int64_t>(history.size());
    return length - raw.prompt_tokens >= raw.max_tokens || length >= raw.max_len;
  }
};

// What made sample_token throw; it leaves the changed logits behind.
DeviceSample fault_of(const float* original, const float* changed, int64_t vocab) {
  DeviceSample sample;
  const float* bad = std::find_if_not(original, original + vocab,
                                      [](float logit) { return std::isfinite(logit); });
  const float* best = std::max_element(changed, changed + vocab);
  if (bad != original + vocab) {
    sample.token = to_int32(bad - original);
    sample.logprob = *bad;
    sample.status = kSampleNotFinite;
  } else if (*best < 0.0f) {
    sample.status = kSampleNothingLeft;
  } else {
    sample.token = to_int32(best - changed);
    sample.status = kSampleInfinite;
  }
  return sample;
}

DeviceSample sample_row(float* logits, int64_t vocab, int32_t slot, const DeviceSlots& slots) {
  DeviceSample sample;
  sample.slot = slot;
  if (slot < 0 || slot >= slots.tokens.dim(0)) return sample;
  HostSlot host(slots, slot);
  if (*host.finished != 0) return sample;
  const std::vector<float> original(logits, logits + vocab);
  try {
    const Sampled chosen =
        sample_token(logits, vocab, host.params, host.ids(host.raw.mask_begin, host.raw.mask_ids),
                     host.history, *host.tokens - host.raw.prompt_tokens);
    sample.token = to_int32(chosen.token);
    sample.logprob = chosen.logprob;
    sample.status = kSampleOk;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInternal) throw;
    *host.finished = 1;
    DeviceSample fault = fault_of(original.data(), logits, vocab);
    fault.slot = slot;
    return fault;
  }
  if (*host.tokens < host.capacity) host.row[(*host.tokens)++] = sample.token;
  host.history.push_back(sample.token);
  if (host.ends_with(sample.token)) *host.finished = 1;
  return sample;
}

void check_slots(const DeviceSlots& slots) {
  FLEXQ_FT_CHECK_EQ(slots.tokens.rank(), 1, "sampling: tokens ", slots.tokens.shape());
  const int64_t count = slots.tokens.dim(0);
  FLEXQ_FT_CHECK_LT(0, count, "sampling: slots");
  FLEXQ_FT_CHECK_EQ(slots.params.shape(), (Shape{count, sizeof(SlotParams)}), "sampling: params");
  FLEXQ_FT_CHECK_EQ(slots.params.dtype(), DataType::kUint8, "sampling: params");
  FLEXQ_FT_CHECK_EQ(slots.history.rank(), 2, "sampling: history ", slots.history.shape());
  FLEXQ_FT_CHECK_EQ(slots.history.dim(0), count, "sampling: slots of history");
  FLEXQ_FT_CHECK_EQ(slots.finished.shape(), slots.tokens.shape(), "sampling: finished");
  FLEXQ_FT_CHECK_EQ(slots.words.shape(), (Shape{count, kWordInts}), "sampling: words");
  for (const Tensor* ints : {&slots.history, &slots.tokens, &slots.finished, &slots.words}) {
    FLEXQ_FT_CHECK_EQ(ints->dtype(), DataType::kInt32, "sampling: a row of slots");
  }
}

}  // namespace

std::vector<uint8_t> encode_slot(const SamplingParams& params, const std::vector<int64_t>& end_ids,
                                 int64_t prompt_tokens, int64_t max_len,
                                 std::vector<int32_t>* words) {
  SlotParams slot;
  slot.temperature = params.temperature;
  slot.top_p = params.top_p;
  slot.min_p = params.min_p;
  slot.repetition_penalty = params.repetition_penalty;
  slot.presence_penalty = params.presence_penalty;
  slot.seed = params.seed;
  slot.top_k = params.top_k;
  slot.min_tokens = params.min_tokens;
  slot.max_tokens = params.max_tokens;
  slot.prompt_tokens = to_int32(prompt_tokens);
  slot.max_len = to_int32(max_len);
  encode_words(params, &slot, words);
  encode_end_ids(params, end_ids, &slot);
  slot.flags = flags_of(slot);
  if (slot.mask_ids > 0) {
    slot.hold_until = to_int32(prompt_tokens + std::min(params.min_tokens, max_len));
  }
  std::vector<uint8_t> bytes(sizeof(slot));
  std::memcpy(bytes.data(), &slot, sizeof(slot));
  return bytes;
}

void throw_sampling_fault(const DeviceSample& sample, const SamplingParams& params,
                          int64_t vocab_size) {
  switch (sample.status) {
    case kSampleNotFinite:
      throw Error(ErrorKind::kWeight,
                  detail::join("the model's logits are not finite: token ", sample.token, " of ",
                               vocab_size, " has ", sample.logprob),
                  "a weight is damaged, or a value left the range of the compute type",
                  "flexq-ft inspect MODEL --verify, or run with --dtype fp32");
    case kSampleNothingLeft:
      throw Error(ErrorKind::kConfig,
                  detail::join("bad_words and min_tokens = ", params.min_tokens,
                               " leave none of the ", vocab_size, " tokens"),
                  {}, "ban fewer tokens");
    case kSampleInfinite:
      throw Error(ErrorKind::kConfig,
                  detail::join("temperature = ", params.temperature,
                               " and repetition_penalty = ", params.repetition_penalty,
                               " make the logit of token ", sample.token, " infinite"),
                  {}, "use values nearer to 1");
    default:
      FLEXQ_FT_CHECK(sample.status == kSampleOk || sample.status == kSampleIdle, "status ",
                     sample.status, " of a sample");
  }
}

size_t sample_workspace_bytes(int64_t rows, int64_t vocab) {
  const int64_t chunks = (vocab + gpu::kSampleChunk - 1) / gpu::kSampleChunk;
  const int64_t changed_logits = vocab * static_cast<int64_t>(sizeof(float));
  return static_cast<size_t>(rows * (chunks * gpu::kSamplePartialBytes + changed_logits));
}

void invokeSample(Tensor out, Tensor logits, ConstTensor row_slots, const DeviceSlots& slots,
                  Tensor workspace, Stream stream) {
  FLEXQ_FT_CHECK_EQ(logits.rank(), 2, "sampling: logits ", logits.shape());
  FLEXQ_FT_CHECK_EQ(logits.dtype(), DataType::kFp32, "sampling: logits");
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  FLEXQ_FT_CHECK_EQ(out.shape(), (Shape{rows, sizeof(DeviceSample)}), "sampling: out");
  FLEXQ_FT_CHECK_EQ(out.dtype(), DataType::kUint8, "sampling: out");
  FLEXQ_FT_CHECK_EQ(row_slots.shape(), (Shape{rows}), "sampling: row_slots");
  FLEXQ_FT_CHECK_EQ(row_slots.dtype(), DataType::kInt32, "sampling: row_slots");
  check_slots(slots);
  if (rows == 0) return;
  FLEXQ_FT_CHECK_LT(0, vocab, "sampling: vocabulary");
  FLEXQ_FT_CHECK_LE(vocab, kMaxSampleVocab, "sampling: vocabulary");
  if (logits.device() == Device::kCuda) {
    FLEXQ_FT_CHECK_LE(sample_workspace_bytes(rows, vocab), workspace.bytes(), "sampling of ", rows,
                      " rows: workspace");
    return gpu::sample(out, logits, row_slots, slots, workspace, stream);
  }
  auto* samples = static_cast<DeviceSample*>(out.raw());
  for (int64_t row = 0; row < rows; ++row) {
    samples[row] = sample_row(logits.data<float>() + row * vocab, vocab,
                              row_slots.data<int32_t>()[row], slots);
  }
}

}  // namespace flexq_ft
