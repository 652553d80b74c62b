// Sampling where the logits are: the device twin of sample_token (ft/kernels/sampling.h) and of the
// stop rule (ft/decoding/stop.h), with the state of every sequence in device memory, so that a step
// needs no answer from the host. Everything is read on the device: a captured launch serves greedy
// and drawn rows, whatever their parameters are by then.
//
// The token is that of sample_token, but for a draw or a top-p limit that falls within about 1e-9
// (of the mass) of the border between two tokens: a GPU adds probabilities as integers, in units of
// 2^-44 of the best token's, so that no order of adding shows. The log-probability is within 2e-6.
#pragma once

#include <cstdint>
#include <vector>

#include "ft/core/stream.h"
#include "ft/core/tensor.h"
#include "ft/kernels/sampling.h"

namespace flexq_ft {

constexpr int64_t kWordInts = 4096;           // of a slot's stop and bad words, encoded
constexpr int kSlotEndIds = 64;               // ids that end a sequence or are held back
constexpr int64_t kMaxSampleVocab = 1 << 19;  // the sum of so many probabilities fits 64 bits

// What encode_slot made of SamplingParams; read by kernels.
struct SlotParams {
  double temperature = 0.0;
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  uint64_t seed = 0;
  int64_t top_k = 0;
  int64_t min_tokens = 0;
  int64_t max_tokens = 0;
  int32_t prompt_tokens = 0;
  int32_t max_len = 0;
  // Words: entry w of the slot's row of words is {begin, end} of its tokens, counted in ints from
  // the start of the row; stop words first.
  int32_t stop_words = 0;
  int32_t bad_words = 0;
  // end_ids[0, stop_ids) end the sequence; the mask_ids ones from mask_begin are held back until
  // min_tokens. They are the same unless end ids are ignored.
  int32_t stop_ids = 0;
  int32_t mask_begin = 0;
  int32_t mask_ids = 0;
  int32_t end_ids[kSlotEndIds] = {};
};

// Views of one allocation each, one row per slot.
struct DeviceSlots {
  Tensor params;    // [slots, sizeof(SlotParams)] uint8
  Tensor history;   // [slots, max_len] int32: prompt and output ids
  Tensor tokens;    // [slots] int32: how many
  Tensor finished;  // [slots] int32: 0 running, 1 ended
  Tensor words;     // [slots, kWordInts] int32
};

// A slot's row of params, and in *words the start of its row of words (the rest is never read).
//   end_ids  those that count, as in finish_reason: none where they are ignored
// Error{kConfig} naming the numbers if words or end ids are more than a row holds.
std::vector<uint8_t> encode_slot(const SamplingParams& params, const std::vector<int64_t>& end_ids,
                                 int64_t prompt_tokens, int64_t max_len,
                                 std::vector<int32_t>* words);

enum SampleStatus : int32_t {
  kSampleOk = 0,
  kSampleIdle = 1,         // no slot, or one that has ended: nothing was done
  kSampleNotFinite = 2,    // token: the first id whose logit is not finite; logprob: that logit
  kSampleNothingLeft = 3,  // bad words and min_tokens leave no token
  kSampleInfinite = 4,     // temperature and penalties make the logit of token infinite
};

struct DeviceSample {
  int32_t slot = -1;
  int32_t token = 0;
  float logprob = 0.0f;
  int32_t status = kSampleIdle;  // SampleStatus
};
static_assert(sizeof(DeviceSample) == 16, "one row of out");

// Throws what sample_token throws for the fault; returns if there was none.
void throw_sampling_fault(const DeviceSample& sample, const SamplingParams& params,
                          int64_t vocab_size);

// Chooses one token for every row, appends it to the slot's history and says whether the slot ends
// with it. A fault ends the slot and appends nothing. No slot may stand in two rows.
//   out        [rows, sizeof(DeviceSample)] uint8, aligned to 16; device memory, or pinned memory
//   logits     [rows, vocab] fp32; may be changed
//   row_slots  [rows] int32, the slot of the row; outside [0, slots): idle
//   workspace  sample_workspace_bytes, aligned to 16; holds nothing between calls
// rows == 0 is a no-op. Never allocates, never synchronises.
void invokeSample(Tensor out, Tensor logits, ConstTensor row_slots, const DeviceSlots& slots,
                  Tensor workspace, Stream stream);
size_t sample_workspace_bytes(int64_t rows, int64_t vocab);

namespace gpu {

constexpr int kSampleChunk = 2048;       // logits of one thread block of the first kernel
constexpr int kSamplePartialBytes = 32;  // that it leaves for the second

void sample(Tensor out, Tensor logits, ConstTensor row_slots, const DeviceSlots& slots,
            Tensor workspace, Stream stream);

}  // namespace gpu

}  // namespace flexq_ft
